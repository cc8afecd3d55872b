from pathlib import Path

import pytest

from moesaic.data.rows import HubSource, JsonlSource, ParquetSource
from moesaic.data.source import open_source
from moesaic.data.text import FolderSource, TextFileSource
from moesaic.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", TextFileSource),
        ("a.weird", TextFileSource),
        ("a.jsonl", JsonlSource),
        ("a.parquet", ParquetSource),
        ("folder", FolderSource),
    ],
)
def test_source_is_of_the_kind_of_its_name_when_it_is_a_path(tmp_path: Path, name: str, kind: type) -> None:
    if name == "folder":
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a.py").write_text("text")
    else:
        (tmp_path / name).write_text("text")
    source = open_source(str(tmp_path / name), None, ["*.py"])
    assert isinstance(source, kind)
    assert source.name == str(tmp_path / name)


def test_source_is_built_in_when_named_so() -> None:
    assert open_source("python-stdlib", None, []).name == "python-stdlib"
    assert isinstance(open_source("hf:a/b", None, []), HubSource)


def test_source_reads_the_field_text_when_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "b": "c"}')
    path = str(tmp_path / "a.jsonl")
    assert [d.text for d in open_source(path, None, []).documents()] == ["a"]
    assert [d.text for d in open_source(path, "b", []).documents()] == ["c"]


def test_source_raises_with_the_nearest_name_when_a_built_in_is_misspelt() -> None:
    with pytest.raises(DataError, match="no file or folder at 'python-stdlb'") as caught:
        open_source("python-stdlb", None, [])
    assert caught.value.hint == "did you mean 'python-stdlib'?"


@pytest.mark.parametrize("name", ["absent.txt", "absent.jsonl"])
def test_source_raises_with_what_is_accepted_when_the_path_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"no file or folder at '.*absent") as caught:
        open_source(str(tmp_path / name), None, [])
    assert caught.value.hint == "give a path, hf:NAME or python-stdlib"


@pytest.mark.parametrize(("suffix", "hint"), [(".json", ".jsonl"), (".csv", "data.field"), (".gz", "unpack")])
def test_source_raises_with_a_way_out_when_the_format_is_not_read(tmp_path: Path, suffix: str, hint: str) -> None:
    (tmp_path / f"a{suffix}").write_text("{}")
    with pytest.raises(DataError, match=rf"is a \{suffix} file, which is not read") as caught:
        open_source(str(tmp_path / f"a{suffix}"), None, [])
    assert hint in caught.value.hint


def test_source_raises_when_a_field_is_named_for_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ConfigError, match=r"data\.field is 'body', but source '.*a\.txt' has no fields"):
        open_source(str(tmp_path / "a.txt"), "body", [])
