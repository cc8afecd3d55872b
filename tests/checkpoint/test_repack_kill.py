"""Kill -9 at any step of a repacking: nothing is taken for a model, and the next one goes on to the same bytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.checkpoint.export import export_model
from moesaic.testing.tiny import tiny_model

# Two layers with experts, and the dense core.
NUM_FILES = 3


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0, 4])
def test_conversion_goes_on_to_the_same_bytes_when_killed_at_any_step(bits: int, tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "source")
    command = [sys.executable, "-m", "tests.checkpoint.killed_repack", str(tmp_path), str(bits)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]

    assert all(report["same"] for report in reports)
    assert all(set(report["found"]) <= {".converting-target", "source", "target"} for report in reports)
    # Once it has its name it is whole; before, what was done is not done again.
    assert reports[-1]["found"] == ["source", "target"]
    written = [report["written"] for report in reports]
    assert written == sorted(written, reverse=True)
    assert set(written) == {0, 1, 2, 3}
    assert written[0] == NUM_FILES
