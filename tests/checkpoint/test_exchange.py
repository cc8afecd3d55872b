"""Two folders that swap their names."""

import ctypes
from pathlib import Path

import pytest

from moesaic.checkpoint.exchange import exchange_folders


def _folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_folders_swap_names_when_the_file_system_can(tmp_path: Path) -> None:
    first, second = _folder(tmp_path / "first", "1"), _folder(tmp_path / "second é", "2")
    if not exchange_folders(first, second):
        pytest.skip("this file system cannot swap two names")
    assert ((first / "file").read_text(), (second / "file").read_text()) == ("2", "1")


def test_answer_is_no_and_nothing_moves_when_a_name_is_free(tmp_path: Path) -> None:
    first = _folder(tmp_path / "first", "1")
    assert not exchange_folders(first, tmp_path / "second")
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_answer_is_no_when_the_c_library_has_no_such_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not exchange_folders(_folder(tmp_path / "first", "1"), _folder(tmp_path / "second", "2"))
