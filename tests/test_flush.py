"""Content is on the disk before the name that publishes it, and a failed write leaves nothing but the old one."""

import os
from pathlib import Path

import pytest

from moesaic.flush import flush_tree, replace_text


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inodes that were flushed, in order."""
    inodes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: inodes.append(os.fstat(descriptor).st_ino))
    return inodes


def test_tree_is_flushed_whole_when_it_is_nested(tmp_path: Path, flushed: list[int]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    flush_tree(tmp_path)
    paths = [tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "file"]
    assert sorted(flushed) == sorted(path.stat().st_ino for path in paths)


def test_text_is_flushed_before_it_takes_the_name_when_replaced(
    tmp_path: Path, flushed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed_at_rename: list[list[int]] = []
    replace = os.replace

    def rename(source: Path, target: Path) -> None:
        flushed_at_rename.append(list(flushed))
        replace(source, target)

    monkeypatch.setattr(os, "replace", rename)
    (tmp_path / "page").write_text("old")
    replace_text(tmp_path / "page", "é\n")
    assert (tmp_path / "page").read_bytes() == "é\n".encode()
    assert flushed_at_rename == [[(tmp_path / "page").stat().st_ino]]
    assert flushed[1:] == [tmp_path.stat().st_ino]
    assert os.listdir(tmp_path) == ["page"]


def test_old_text_stays_alone_when_the_new_one_cannot_be_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    (tmp_path / "page").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        replace_text(tmp_path / "page", "new")
    assert os.listdir(tmp_path) == ["page"]
    assert (tmp_path / "page").read_text() == "old"
