"""Folders that appear whole or not at all: failures while writing, and what a killed writer left."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moesaic.checkpoint import atomic
from moesaic.checkpoint.atomic import atomic_folder, remove_folder, remove_leftovers, write_tensors
from moesaic.errors import CheckpointError


def _write(folder: Path, text: str) -> None:
    with atomic_folder(folder) as target:
        (target / "file").write_text(text)


def _names(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


@pytest.mark.parametrize("name", ["model", "run[1]", "a*", ".hidden"])
def test_folder_takes_the_place_of_the_old_one_when_written(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / name
    _write(folder, "old")
    with atomic_folder(folder) as target:
        (target / "file").write_text("new")
        assert (folder / "file").read_text() == "old"
    assert (folder / "file").read_text() == "new"
    assert _names(folder.parent) == [name]


def _fail_halfway(folder: Path, failure: BaseException) -> None:
    with atomic_folder(folder) as target:
        (target / "file").write_text("half")
        raise failure


def _cannot_exchange(first: Path, second: Path) -> bool:
    return False


def test_folder_is_replaced_when_names_cannot_be_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "exchange_folders", _cannot_exchange)
    for text in ("old", "new"):
        _write(tmp_path / "model", text)
        assert (tmp_path / "model" / "file").read_text() == text
    assert _names(tmp_path) == ["model"]


@pytest.mark.parametrize("failure", [ValueError("mistake"), KeyboardInterrupt()])
def test_old_folder_stays_when_writing_raises(failure: BaseException, tmp_path: Path) -> None:
    _write(tmp_path / "model", "old")
    with pytest.raises(type(failure)):
        _fail_halfway(tmp_path / "model", failure)
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert _names(tmp_path) == ["model"]


def test_no_folder_appears_when_the_first_writing_raises(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write '.*model': no room") as caught:
        _fail_halfway(tmp_path / "model", OSError("no room"))
    assert caught.value.hint.endswith("what was saved before is whole")
    assert _names(tmp_path) == []


def test_old_folder_comes_back_when_the_last_renaming_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "exchange_folders", _cannot_exchange)
    _write(tmp_path / "model", "old")
    rename = Path.rename

    def fail_on_the_new_one(self: Path, target: Path) -> Path:
        if self.name == ".writing-model":
            raise OSError("no rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(CheckpointError, match="no rename"):
        _write(tmp_path / "model", "new")
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert _names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["model", "run[1]"])
def test_leftovers_are_removed_when_the_next_writer_comes(name: str, tmp_path: Path) -> None:
    _write(tmp_path / name, "old")
    for left in (f".writing-{name}", f".replaced-{name}", ".writing-other"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "file").write_text("left")
    _write(tmp_path / name, "new")
    assert (tmp_path / name / "file").read_text() == "new"
    assert _names(tmp_path) == sorted([".writing-other", name])


def test_replacement_is_undone_when_the_writer_was_killed_between_its_renames(tmp_path: Path) -> None:
    _write(tmp_path / ".replaced-model", "old")
    _write(tmp_path / ".writing-model", "new")
    remove_leftovers(tmp_path)
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert _names(tmp_path) == ["model"]


def test_folder_is_removed_when_an_earlier_removal_was_cut_short(tmp_path: Path) -> None:
    _write(tmp_path / "model", "old")
    _write(tmp_path / ".writing-model", "half removed")
    remove_folder(tmp_path / "model")
    assert _names(tmp_path) == []


def test_file_is_not_replaced_when_it_stands_in_the_place(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write '.*model': it is a file") as caught:
        _write(tmp_path / "model", "new")
    assert caught.value.hint == "give the name of a folder"
    assert (tmp_path / "model").read_text() == "a file"


def test_folder_is_refused_when_its_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        _write(tmp_path / "file" / "model", "new")


def test_tensors_are_written_each_on_its_own_when_they_are_parts_of_one(tmp_path: Path) -> None:
    stacked = torch.arange(12.0).view(3, 2, 2)
    write_tensors(tmp_path / "file", {"first": stacked[0], "turned": stacked[1].t(), "last": stacked[2]})
    back = load_file(tmp_path / "file")
    assert torch.equal(back["turned"], stacked[1].t())
    assert torch.equal(back["last"], stacked[2])
    assert (tmp_path / "file").stat().st_size < 400


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_tensors_may_be_read_by_whom_the_umask_lets_when_written(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
