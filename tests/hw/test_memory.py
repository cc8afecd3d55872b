"""Free memory, and the limits of control groups that lie on a process."""

import mmap
from pathlib import Path

import psutil
import pytest

from moesaic.hw import memory
from moesaic.hw.memory import CODE_BYTES, available_bytes, held_bytes, limit_bytes


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


def test_limit_of_a_group_is_also_charged_with_code(groups: Path) -> None:
    assert limit_bytes() == psutil.virtual_memory().total
    (groups / "memory" / "job" / "memory.limit_in_bytes").write_text(str(2**30))
    assert limit_bytes() == 2**30 - CODE_BYTES


def test_free_memory_is_what_can_be_taken_when_there_are_no_groups(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_OWN_GROUPS", groups / "none")
    (groups / "memory.max").write_text("4096\n")
    assert available_bytes() > 4096


def test_what_is_held_grows_with_memory_and_not_with_mapped_files(tmp_path: Path) -> None:
    before = held_bytes()
    block = bytearray(b"x") * 2**26
    assert 0.9 * 2**26 < held_bytes() - before < 1.5 * 2**26
    (tmp_path / "file").write_bytes(block)
    del block
    before = held_bytes()
    with (tmp_path / "file").open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped.find(b"y") == -1
        assert abs(held_bytes() - before) < 2**24


def test_resident_memory_is_what_is_held_where_the_system_does_not_tell_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_OWN_STATUS", tmp_path / "none")
    assert held_bytes() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
