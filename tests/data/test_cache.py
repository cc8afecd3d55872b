import os
from pathlib import Path

import pytest

from moesaic.data.cache import cache_root, digest_of, open_or_fill
from moesaic.errors import DataError


def read(folder: Path) -> str:
    return (folder / "content").read_text()


def writer_of(text: str):
    def fill(folder: Path) -> None:
        (folder / "content").write_text(text)

    return fill


def refuse(folder: Path) -> None:
    raise AssertionError("filled again")


def test_cache_folder_is_filled_once_when_asked_for_twice(tmp_path: Path) -> None:
    assert open_or_fill(tmp_path / "a" / "key", read, writer_of("one")) == "one"
    assert open_or_fill(tmp_path / "a" / "key", read, refuse) == "one"
    assert os.listdir(tmp_path / "a") == ["key"]


def test_cache_folder_is_on_the_disk_when_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named_when_flushed: dict[int, bool] = {}

    def note(descriptor: int) -> None:
        named_when_flushed[os.fstat(descriptor).st_ino] = (tmp_path / "key").exists()

    monkeypatch.setattr(os, "fsync", note)
    open_or_fill(tmp_path / "key", read, writer_of("one"))
    for path in (tmp_path / "key" / "content", tmp_path / "key"):
        assert named_when_flushed[path.stat().st_ino] is False


def test_cache_raises_and_names_nothing_when_the_disk_does_not_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DataError, match=r"cannot write tokenised text under .*: Input/output error"):
        open_or_fill(tmp_path / "key", read, writer_of("one"))
    assert os.listdir(tmp_path) == []


def test_cache_folder_is_filled_again_when_it_is_damaged(tmp_path: Path) -> None:
    open_or_fill(tmp_path / "key", read, writer_of("one"))
    (tmp_path / "key" / "content").rename(tmp_path / "key" / "elsewhere")
    assert open_or_fill(tmp_path / "key", read, writer_of("two")) == "two"
    assert os.listdir(tmp_path / "key") == ["content"]
    assert os.listdir(tmp_path) == ["key"]


def test_cache_folder_is_the_first_one_when_another_process_was_faster(tmp_path: Path) -> None:
    def fill_slowly(folder: Path) -> None:
        open_or_fill(tmp_path / "key", read, writer_of("winner"))
        writer_of("loser")(folder)

    assert open_or_fill(tmp_path / "key", read, fill_slowly) == "winner"
    assert os.listdir(tmp_path) == ["key"]


def test_cache_leaves_nothing_behind_when_filling_fails(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        writer_of("half")(folder)
        raise DataError("no text")

    with pytest.raises(DataError, match="no text"):
        open_or_fill(tmp_path / "key", read, fail)
    assert os.listdir(tmp_path) == []


def test_cache_raises_when_its_place_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write tokenised text under '.*file': ") as caught:
        open_or_fill(tmp_path / "file" / "key", read, refuse)
    assert "MOESAIC_CACHE" in caught.value.hint


def test_cache_raises_when_the_disk_is_full(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot write tokenised text under .*: No space left on device"):
        open_or_fill(tmp_path / "key", read, fail)


def test_cache_raises_when_a_filled_folder_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot write tokenised text under .*'.*key' stays damaged"):
        open_or_fill(tmp_path / "key", read, lambda folder: None)


def test_cache_root_is_the_given_one_then_the_variable_then_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_CACHE", "/from/variable")
    monkeypatch.setenv("HOME", "/some/home")
    assert cache_root("/given") == Path("/given")
    assert cache_root(None) == Path("/from/variable")
    monkeypatch.delenv("MOESAIC_CACHE")
    assert cache_root(None) == Path("/some/home/.cache/moesaic/data")


def test_digest_changes_only_when_the_content_does() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1, "b": [3]})
