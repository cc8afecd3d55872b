"""Kill -9 at any moment leaves a whole folder: the old one or the new one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.checkpoint.exchange import exchange_folders

ROUNDS = 20


@pytest.mark.slow
def test_folder_is_whole_when_its_writer_is_killed_at_any_moment(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    if not exchange_folders(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot swap two names: between two renames a folder has none")
    for name in ("a", "b"):
        (tmp_path / name).rmdir()
    command = [sys.executable, "-m", "tests.checkpoint.killed_writer", str(tmp_path), str(ROUNDS)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]

    assert len(reports) == ROUNDS
    assert sum(report["gone"] for report in reports) == 0
    assert all(report["kept"] == ["model"] for report in reports)
    numbers = [report["number"] for report in reports]
    assert numbers == sorted(numbers)
    assert numbers[-1] > 0
    # Otherwise no kill fell into a writing, and the test has shown nothing.
    assert any(report["found"] != ["model"] for report in reports)
