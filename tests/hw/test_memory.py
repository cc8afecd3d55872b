"""Free memory, and the limits of control groups that lie on a process."""

from pathlib import Path

import psutil
import pytest

from moesaic.hw import memory
from moesaic.hw.memory import available_bytes


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of control groups without a limit, and a process in the group 'job' of both versions."""
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("4:memory:/job\n3:cpuset:/\n0::/job\n")
    (tmp_path / "job").mkdir()
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "job" / "memory.max").write_text("max\n")
    return tmp_path


def test_free_memory_is_what_can_be_taken_when_no_group_limits_it(groups: Path) -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total


@pytest.mark.parametrize(
    "file", ["memory.max", "job/memory.max", "memory/memory.limit_in_bytes", "memory/job/memory.limit_in_bytes"]
)
def test_limit_is_what_can_be_taken_when_a_group_has_one(file: str, groups: Path) -> None:
    (groups / file).write_text("4096\n")
    assert available_bytes() == 4096


def test_free_memory_is_what_can_be_taken_when_there_are_no_groups(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_OWN_GROUPS", groups / "none")
    (groups / "memory.max").write_text("4096\n")
    assert available_bytes() > 4096
