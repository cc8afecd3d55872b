from pathlib import Path

import pytest

from moesaic.config.data import DataConfig
from moesaic.data.rows import HubSource, JsonlSource, ParquetSource, TextField
from moesaic.data.source import open_source, open_sources
from moesaic.data.text import FolderSource, TextFileSource
from moesaic.errors import ConfigError, DataError

TEXT = TextField("text")


def texts(config: DataConfig) -> list[list[str]]:
    return [[document.text for document in source.documents()] for source in open_sources(config)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", TextFileSource),
        ("a.weird", TextFileSource),
        ("a.jsonl", JsonlSource),
        ("a.parquet", ParquetSource),
        ("A.JSONL", JsonlSource),
        ("A.Parquet", ParquetSource),
        ("folder", FolderSource),
    ],
)
def test_source_is_of_the_kind_of_its_name_when_it_is_a_path(tmp_path: Path, name: str, kind: type) -> None:
    if name == "folder":
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "a.py").write_text("text")
    else:
        (tmp_path / name).write_text("text")
    source = open_source(str(tmp_path / name), TEXT, ["*.py"])
    assert isinstance(source, kind)
    assert source.name == str(tmp_path / name)


def test_source_is_built_in_when_named_so() -> None:
    assert open_source("python-stdlib", TEXT, []).name == "python-stdlib"
    assert isinstance(open_source("hf:a/b", TEXT, []), HubSource)


def test_source_reads_the_field_text_when_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "b": "c"}')
    path = str(tmp_path / "a.jsonl")
    assert [d.text for d in open_source(path, TEXT, []).documents()] == ["a"]
    assert [d.text for d in open_source(path, TextField("b"), []).documents()] == ["c"]


def test_source_raises_with_the_nearest_name_when_a_built_in_is_misspelt() -> None:
    with pytest.raises(DataError, match="no file or folder at 'python-stdlb'") as caught:
        open_source("python-stdlb", TEXT, [])
    assert caught.value.hint == "did you mean 'python-stdlib'?"


@pytest.mark.parametrize("name", ["absent.txt", "absent.jsonl"])
def test_source_raises_with_what_is_accepted_when_the_path_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"no file or folder at '.*absent") as caught:
        open_source(str(tmp_path / name), TEXT, [])
    assert caught.value.hint == "give a path, hf:NAME or python-stdlib"


@pytest.mark.parametrize(
    ("suffix", "hint"), [(".json", ".jsonl"), (".csv", "data.field"), (".gz", "unpack"), (".GZ", "unpack")]
)
def test_source_raises_with_a_way_out_when_the_format_is_not_read(tmp_path: Path, suffix: str, hint: str) -> None:
    (tmp_path / f"a{suffix}").write_text("{}")
    with pytest.raises(DataError, match=rf"is a \{suffix.lower()} file, which is not read") as caught:
        open_source(str(tmp_path / f"a{suffix}"), TEXT, [])
    assert hint in caught.value.hint


@pytest.fixture
def rows(tmp_path: Path) -> str:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "body": "b", "title": "t"}')
    return str(tmp_path / "a.jsonl")


@pytest.fixture
def plain(tmp_path: Path) -> str:
    (tmp_path / "a.txt").write_text("plain")
    return str(tmp_path / "a.txt")


def test_part_takes_the_field_of_the_data_section_when_it_names_none(rows: str, plain: str) -> None:
    mixture = [{"source": rows}, {"source": rows, "field": "title"}, {"source": plain}]
    assert texts(DataConfig(mixture=mixture, field="body")) == [["b"], ["t"], ["plain"]]
    assert texts(DataConfig(mixture=mixture)) == [["a"], ["t"], ["plain"]]


def test_field_of_the_data_section_may_stand_when_every_part_has_its_own(rows: str) -> None:
    assert texts(DataConfig(mixture=[{"source": rows, "field": "title"}], field="body")) == [["t"]]


def test_source_raises_with_the_part_when_its_field_is_missing(rows: str) -> None:
    config = DataConfig(mixture=[{"source": rows}, {"source": rows, "field": "absent"}])
    with pytest.raises(DataError, match="has no field 'absent'") as caught:
        texts(config)
    assert caught.value.hint == "set data.mixture.1.field to the key of the text"
    with pytest.raises(DataError, match="has no field 'absent'") as caught:
        texts(DataConfig(source=rows, field="absent"))
    assert caught.value.hint == "set data.field to the key of the text"


def test_source_raises_when_a_field_is_named_for_plain_text_alone(rows: str, plain: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.field is 'body', but source '.*a\.txt' has no fields") as caught:
        open_sources(DataConfig(source=plain, field="body"))
    assert caught.value.hint == "leave data.field out, or name rows"
    with pytest.raises(ConfigError, match=r"data\.field is 'body', but source '.*a\.txt' has no fields"):
        open_sources(DataConfig(mixture=[{"source": rows, "field": "title"}, {"source": plain}], field="body"))
    with pytest.raises(ConfigError, match=r"data\.mixture\.1\.field is 'body', but source 'python-stdlib' has no"):
        open_sources(DataConfig(mixture=[{"source": rows}, {"source": "python-stdlib", "field": "body"}]))


def test_folder_gives_rows_when_its_files_hold_them(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "A.JSONL").write_text('{"body": "one"}\n\n{"body": "two"}\n')
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / "c.jsonl").write_text('{"body": ""}\n')
    config = DataConfig(source=str(tmp_path), field="body", include=["*.txt", "*.jsonl", "*.JSONL"])
    (source,) = open_sources(config)
    assert [(document.name, document.text) for document in source.documents()] == [
        ("b.txt", "three"),
        ("in/A.JSONL:1", "one"),
        ("in/A.JSONL:3", "two"),
    ]
    assert source.num_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.*"))


def test_folder_gives_rows_when_they_are_in_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    (source,) = open_sources(DataConfig(source=str(tmp_path), include=["*.parquet"]))
    assert [document.name for document in source.documents()] == ["a.parquet:1", "a.parquet:2"]
    assert source.num_bytes is None


def test_fingerprint_of_a_folder_changes_with_the_field_when_it_holds_rows(tmp_path: Path, plain: str) -> None:
    without = open_source(str(tmp_path), TEXT, ["*.txt"]).fingerprint()
    assert without == open_source(str(tmp_path), TextField("body"), ["*.txt"]).fingerprint()
    (tmp_path / "a.jsonl").write_text('{"text": "a", "body": "b"}')
    prints = [open_source(str(tmp_path), TextField(name), ["*.jsonl"]).fingerprint() for name in ("text", "body")]
    assert prints[0] != prints[1]
