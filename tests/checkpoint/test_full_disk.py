"""A disk that is full while a model is written: an error, and the earlier model stays whole."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.errors import CheckpointError
from moesaic.testing.tiny import tiny_model

# Writes over an earlier model with files limited to 20 kB: the operating system refuses the rest.
LIMITED_WRITER = """
import resource, sys
from pathlib import Path
from moesaic.checkpoint.export import export_model
from moesaic.errors import CheckpointError
from moesaic.testing.tiny import tiny_model

model = tiny_model(seed=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    export_model(model, Path(sys.argv[1]))
except CheckpointError as error:
    print(error.text)
"""


def _assert_is_first_model(folder: Path) -> None:
    found, expected = load_model(folder).state_dict(), tiny_model(seed=0).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for one tiny model."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    mount = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let root mount a file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_earlier_model_stays_whole_when_files_cannot_grow(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export_model(tiny_model(seed=0), folder)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_WRITER, str(folder)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write '{folder}': ")
    _assert_is_first_model(folder)


def test_earlier_model_stays_whole_when_the_disk_is_full(small_disk: Path) -> None:
    folder = small_disk / "model"
    export_model(tiny_model(seed=0), folder)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"cannot write '{folder}': ") as caught:
            export_model(tiny_model(seed=1), folder)
        assert caught.value.hint.startswith("free some space")
        _assert_is_first_model(folder)
