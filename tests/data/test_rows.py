import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from moesaic.data.rows import HubSource, JsonlSource, ParquetSource, TextField
from moesaic.errors import ConfigError, DataError

TEXT = TextField("text")
ROWS = [{"text": "one", "id": 1}, {"text": " ", "id": 2}, {"text": "zwei €", "id": 3}]


def jsonl(folder: Path, content: str | bytes) -> JsonlSource:
    path = folder / "rows.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return JsonlSource("given", path, TEXT)


def parquet(path: Path, rows: list[dict]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict]]:
    """Stand in for the network: any dataset has ROWS; return the calls made."""
    import datasets
    import huggingface_hub

    calls: list[tuple[str, dict]] = []

    def load_dataset(path: str, **options: object) -> list[dict]:
        calls.append((path, options))
        return ROWS

    def dataset_info(self: object, name: str) -> SimpleNamespace:
        calls.append((name, {}))
        return SimpleNamespace(sha="abc123")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return calls


def test_jsonl_gives_the_field_of_each_line_when_rows_have_text(tmp_path: Path) -> None:
    lines = "\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS) + "\r\n"
    source = jsonl(tmp_path, lines)
    documents = list(source.documents())
    assert [(d.name, d.text) for d in documents] == [("rows.jsonl:1", "one"), ("rows.jsonl:5", "zwei €")]
    assert source.num_bytes == len(lines.encode())


def test_jsonl_fingerprint_changes_when_the_field_does(tmp_path: Path) -> None:
    jsonl(tmp_path, '{"text": "a"}')
    fields = [TextField("text"), TextField("text", "data.mixture.0.field"), TextField("title")]
    one, same, other = (JsonlSource("x", tmp_path / "rows.jsonl", field).fingerprint() for field in fields)
    assert one == same != other


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("{bad", r"rows\.jsonl' line 2 is no valid JSON: Expecting property name"),
        ("[1]", r"rows\.jsonl' line 2 is of type list; accepted is an object"),
        ('{"title": "a", "id": 1}', r"rows\.jsonl' line 2 has no field 'text'; found: title, id"),
        ("{}", r"line 2 has no field 'text'; found: none"),
        ('{"text": 5}', r"line 2: field 'text' is of type int; accepted is a string"),
        ('{"text": null}', r"line 2: field 'text' is of type NoneType; accepted is a string"),
        ('{"text": "\\ud800"}', r"line 2: field 'text' holds half of a surrogate pair"),
        ('{"id": ' + "[" * 200_000, r"rows\.jsonl' line 2 cannot be parsed: maximum recursion depth"),
        ('{"id": ' + "9" * 5000 + "}", r"rows\.jsonl' line 2 cannot be parsed: Exceeds the limit"),
        (b'{"text": "\xe9"}', r"rows\.jsonl' line 2 is not UTF-8: its byte 10 is 0xe9"),
    ],
)
def test_jsonl_raises_with_file_and_line_when_a_line_is(tmp_path: Path, line: str | bytes, text: str) -> None:
    content = line if isinstance(line, bytes) else line.encode()
    source = jsonl(tmp_path, b'{"text": "fine"}\n' + content)
    with pytest.raises(DataError, match=text) as caught:
        list(source.documents())
    assert caught.value.hint


def test_jsonl_counts_every_byte_when_some_rows_have_no_text(tmp_path: Path) -> None:
    source = jsonl(tmp_path, '{"text": "", "id": "long"}\n\n{"text": "a"}\n{"text": "b"}\n')
    assert [document.num_bytes for document in source.documents()] == [28 + 14, 14]
    assert source.num_bytes == 56


@pytest.mark.parametrize("line", ['{"title": "a"}', '{"text": 5}'])
def test_jsonl_names_the_setting_when_the_field_is_not_the_text(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError) as caught:
        list(JsonlSource("x", tmp_path / "a.jsonl", TextField("text", "data.mixture.3.field")).documents())
    assert caught.value.hint == "set data.mixture.3.field to the key of the text"


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_jsonl_raises_when_it_is_empty(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl' is empty"):
        list(jsonl(tmp_path, content).documents())


def test_parquet_gives_the_column_of_each_row_when_rows_have_text(tmp_path: Path) -> None:
    source = ParquetSource("given", parquet(tmp_path / "rows.parquet", ROWS), TEXT)
    assert [(d.name, d.text) for d in source.documents()] == [
        ("rows.parquet:1", "one"),
        ("rows.parquet:3", "zwei €"),
    ]
    assert source.fingerprint()["field"] == "text"


def test_parquet_raises_with_the_row_when_the_field_is_missing(tmp_path: Path) -> None:
    source = ParquetSource("given", parquet(tmp_path / "rows.parquet", ROWS), TextField("title"))
    with pytest.raises(DataError, match=r"rows\.parquet' row 1 has no field 'title'; found: text, id"):
        list(source.documents())


def test_parquet_raises_when_the_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match=r"cannot read '.*rows\.parquet': "):
        list(ParquetSource("given", tmp_path / "rows.parquet", TEXT).documents())


def test_parquet_raises_when_no_row_has_text(tmp_path: Path) -> None:
    source = ParquetSource("given", parquet(tmp_path / "rows.parquet", [{"text": ""}]), TEXT)
    with pytest.raises(DataError, match=r"rows\.parquet' is empty"):
        list(source.documents())


def test_hub_streams_one_pinned_revision_when_none_is_named(hub: list) -> None:
    source = HubSource("hf:org/books", TEXT)
    assert [d.name for d in source.documents()] == ["org/books:1", "org/books:3"]
    assert source.fingerprint()["revision"] == "abc123"
    options = {"name": None, "split": "train", "revision": "abc123", "streaming": True}
    assert hub == [("org/books", {}), ("org/books", options)]


def test_hub_asks_nobody_when_a_revision_is_named(hub: list) -> None:
    fingerprint = HubSource("hf:org/books#small:test@v1", TextField("body")).fingerprint()
    assert fingerprint == {
        "kind": "hub",
        "dataset": "org/books",
        "subset": "small",
        "split": "test",
        "revision": "v1",
        "field": "body",
    }
    assert hub == []


@pytest.mark.parametrize("name", ["hf:", "hf:a:b:c", "hf:a@", "hf:a#b#c"])
def test_hub_raises_when_the_name_cannot_be_read(name: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot read '{name}' as a hub dataset") as caught:
        HubSource(name, TEXT)
    assert "hf:NAME" in caught.value.hint


def test_hub_raises_when_the_dataset_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def dataset_info(self: object, name: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(DataError, match=r"cannot find hub dataset 'org/books': no route$") as caught:
        HubSource("hf:org/books", TEXT).fingerprint()
    assert "@REVISION" in caught.value.hint


def test_hub_raises_when_the_dataset_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(path: str, **options: object) -> None:
        raise ValueError('Unknown split "x".')

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="cannot read 'hf:org/books:x@v1': Unknown split") as caught:
        list(HubSource("hf:org/books:x@v1", TEXT).documents())
    assert "split" in caught.value.hint


@pytest.mark.parametrize("kind", ["hub", "parquet"])
def test_rows_raise_with_the_extra_when_datasets_is_not_installed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ConfigError, match="needs the library 'datasets', which is not installed") as caught:
        HubSource("hf:a/b", TEXT) if kind == "hub" else ParquetSource("a", tmp_path / "a.parquet", TEXT)
    assert caught.value.hint == 'pip install "moesaic[data]"'
