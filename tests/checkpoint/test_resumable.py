"""Folders whose writing goes on where it was."""

from pathlib import Path
from typing import Any

import pytest

from moesaic.checkpoint.resumable import resumable_folder
from moesaic.errors import CheckpointError

PLAN = {"bits": 8, "files": {"a": (1, 2)}}


def _write(
    folder: Path, plan: dict[str, Any], stop_after: int | None = None, end: BaseException | None = None
) -> list[str]:
    """Write three parts; return those that were not there."""
    written = []
    with resumable_folder(folder, plan) as unfinished:
        for number, part in enumerate("abc"):
            if number == stop_after:
                raise end or KeyboardInterrupt
            if part not in unfinished.done:
                (unfinished.folder / part).write_text(f"{plan['bits']}")
                unfinished.mark(part, {"number": number})
                written.append(part)
        assert unfinished.done == {part: {"number": number} for number, part in enumerate("abc")}
    return written


def _begin(folder: Path, stop_after: int, plan: dict[str, Any] = PLAN) -> None:
    with pytest.raises(KeyboardInterrupt):
        _write(folder, plan, stop_after)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    _begin(tmp_path / "deep" / "new", 2)
    assert _names(tmp_path / "deep") == [".converting-new"]
    assert _write(tmp_path / "deep" / "new", PLAN) == ["c"]
    assert _names(tmp_path / "deep") == ["new"]
    assert _names(tmp_path / "deep" / "new") == ["a", "b", "c"]


def test_nothing_is_left_when_nothing_was_done(tmp_path: Path) -> None:
    _begin(tmp_path / "new", 0)
    assert _names(tmp_path) == []


def test_writing_begins_anew_when_the_plan_is_another(tmp_path: Path) -> None:
    _begin(tmp_path / "new", 2)
    (tmp_path / ".converting-new" / "content" / "strange").write_text("of the old plan")
    assert _write(tmp_path / "new", {**PLAN, "bits": 4}) == ["a", "b", "c"]
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == dict.fromkeys("abc", "4")


@pytest.mark.parametrize("progress", [b"", b"\0\0\0", b"[]", b'{"plan": 1}', b"\xff\xfe"])
def test_writing_begins_anew_when_progress_cannot_be_read(progress: bytes, tmp_path: Path) -> None:
    _begin(tmp_path / "new", 2)
    (tmp_path / ".converting-new" / "progress.json").write_bytes(progress)
    assert _write(tmp_path / "new", PLAN) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_folder_is_refused_when_its_name_is_taken(kind: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir() if kind == "folder" else (tmp_path / "new").write_text("mine")
    with pytest.raises(CheckpointError, match="new' exists already") as caught:
        _write(tmp_path / "new", PLAN)
    assert caught.value.hint == "choose a new folder"
    assert _names(tmp_path) == ["new"]


def test_second_writer_is_refused_when_the_first_is_at_work(tmp_path: Path) -> None:
    with resumable_folder(tmp_path / "new", PLAN) as unfinished:
        unfinished.mark("a", None)
        with pytest.raises(CheckpointError, match=r"another process is writing '.*/\.converting-new'"):
            _write(tmp_path / "new", PLAN)
        assert unfinished.folder.is_dir()
    assert _names(tmp_path) == ["new"]


def test_failure_is_told_and_what_is_done_stays_when_the_disk_is_full(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write '.*new': .*No space left on device") as caught:
        _write(tmp_path / "new", PLAN, 2, OSError(28, "No space left on device"))
    assert "the same command goes on after what is done" in caught.value.hint
    assert _write(tmp_path / "new", PLAN) == ["c"]


def test_failure_is_told_when_the_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        _write(tmp_path / "file" / "new", PLAN)
