"""Sources of rows with a text field: JSON Lines, parquet files and datasets of the Hugging Face hub.

Rows are streamed; none of them is kept. A row with an empty text is passed over.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.data.document import Document, NoTextError, read_lines
from moesaic.data.text import hash_file
from moesaic.errors import ConfigError, DataError

_HUB_SPEC = re.compile(
    r"hf:(?P<name>[^:@#]+)(?:#(?P<subset>[^:@#]+))?(?::(?P<split>[^:@#]+))?(?:@(?P<revision>[^:@#]+))?"
)


@dataclass(frozen=True)
class TextField:
    """Which field of a row is the text.

    Attributes:
        name: its key in the row.
        setting: the recipe's key that chooses it, for error texts.
    """

    name: str
    setting: str = "data.field"


class JsonlSource:
    """A file with a JSON object on each line."""

    has_fields = True

    def __init__(self, name: str, path: Path, field: TextField) -> None:
        """Take a file that exists."""
        self.name = name
        self.num_bytes: int | None = path.stat().st_size
        self._path = path
        self._field = field

    def documents(self) -> Iterator[Document]:
        """Yield the text of each line; the lines without any count towards the size of the next document.

        Raises:
            DataError: a line is no JSON object with a text under the field, or no line has any text; the
                text names the line, counted from 1.
        """
        found, num_bytes = False, 0
        for number, line in enumerate(read_lines(self._path), start=1):
            num_bytes += len(line)
            if not line.strip():
                continue
            place = f"'{self._path}' line {number}"
            text = _text_of_row(_parse_line(line, place), self._field, place)
            if text.strip():
                found = True
                yield Document(f"{self._path.name}:{number}", text, num_bytes)
                num_bytes = 0
        if not found:
            raise NoTextError(f"'{self._path}' is empty", "give a file with text")

    def fingerprint(self) -> dict[str, Any]:
        """Return the file's name, size and hash, and the field."""
        return {
            "kind": "jsonl",
            "path": self._path.name,
            "bytes": self.num_bytes,
            "sha256": hash_file(self._path),
            "field": self._field.name,
        }


class ParquetSource:
    """A parquet file, a document a row."""

    has_fields = True

    def __init__(self, name: str, path: Path, field: TextField) -> None:
        """Take a file that exists; the field is a column.

        Raises:
            ConfigError: the library that reads it is not installed.
        """
        self.name = name
        self.num_bytes: int | None = None
        self._path = path
        self._field = field
        self._load_fn = _import_load_dataset(name)

    def documents(self) -> Iterator[Document]:
        """Yield the text of each row; raises DataError where the file, a row or its field is unusable."""
        options = {"data_files": str(self._path), "split": "train", "streaming": True}
        yield from _row_documents(self._load_fn, "parquet", options, self._field, str(self._path), self._path.name)

    def fingerprint(self) -> dict[str, Any]:
        """Return the file's name and hash, and the field."""
        return {
            "kind": "parquet",
            "path": self._path.name,
            "sha256": hash_file(self._path),
            "field": self._field.name,
        }


class HubSource:
    """A dataset of the hub: `hf:NAME`, with `#SUBSET`, `:SPLIT` and `@REVISION` where they matter.

    The split is 'train' where none is named. Without a revision the newest one is asked for, which needs the
    network even if its tokens are already prepared; with one, prepared tokens are found offline.
    """

    has_fields = True

    def __init__(self, name: str, field: TextField) -> None:
        """Read the name; nothing is fetched yet.

        Raises:
            ConfigError: the name cannot be read, or the library that streams datasets is not installed.
        """
        match = _HUB_SPEC.fullmatch(name)
        if match is None:
            raise ConfigError(
                f"cannot read '{name}' as a hub dataset",
                "write hf:NAME[#SUBSET][:SPLIT][@REVISION], such as hf:org/books",
            )
        self.name = name
        self.num_bytes: int | None = None
        self._dataset = match["name"]
        self._subset = match["subset"]
        self._split = match["split"] or "train"
        self._revision = match["revision"]
        self._field = field
        self._load_fn = _import_load_dataset(name)

    def documents(self) -> Iterator[Document]:
        """Yield the text of each row; raises DataError where the dataset, a row or its field is unusable."""
        options = {
            "name": self._subset,
            "split": self._split,
            "revision": self._pinned_revision(),
            "streaming": True,
        }
        yield from _row_documents(self._load_fn, self._dataset, options, self._field, self.name, self._dataset)

    def fingerprint(self) -> dict[str, Any]:
        """Return the dataset's name, part and revision, and the field."""
        return {
            "kind": "hub",
            "dataset": self._dataset,
            "subset": self._subset,
            "split": self._split,
            "revision": self._pinned_revision(),
            "field": self._field.name,
        }

    def _pinned_revision(self) -> str:
        """Return the revision, asked for once so that the fingerprint and the rows are of the same one."""
        if self._revision is None:
            from huggingface_hub import HfApi

            try:
                self._revision = HfApi().dataset_info(self._dataset).sha or "main"
            except Exception as failure:  # network and hub errors share no base class
                raise DataError(
                    f"cannot find hub dataset '{self._dataset}': {_first_line(failure)}",
                    "check the name and the network; hf:NAME@REVISION finds prepared tokens offline",
                ) from None
        return self._revision


def _import_load_dataset(name: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ConfigError(
            f"data source '{name}' needs the library 'datasets', which is not installed",
            'pip install "moesaic[data]"',
        ) from None
    return load_dataset


def _row_documents(
    load_fn: Any, dataset: str, options: dict[str, Any], field: TextField, place: str, short_name: str
) -> Iterator[Document]:
    number, found = 0, False
    try:
        rows = iter(load_fn(dataset, **options))
    except Exception as failure:  # the library raises many kinds
        raise _unreadable(place, failure) from None
    while True:
        try:
            row = next(rows, None)
        except Exception as failure:
            raise _unreadable(place, failure) from None
        if row is None:
            break
        number += 1
        text = _text_of_row(row, field, f"'{place}' row {number}")
        if text.strip():
            found = True
            yield Document(f"{short_name}:{number}", text, len(text))
    if not found:
        raise NoTextError(f"'{place}' is empty", "name a dataset or a file with text")


def _unreadable(place: str, failure: Exception) -> DataError:
    return DataError(
        f"cannot read '{place}': {_first_line(failure)}", "check the file, or the dataset's name and split"
    )


def _first_line(failure: Exception) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0]


def _parse_line(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as failure:
        raise DataError(
            f"{place} is not UTF-8: its byte {failure.start} is 0x{failure.object[failure.start]:02x}",
            "convert the file to UTF-8",
        ) from None
    except json.JSONDecodeError as failure:
        raise DataError(f"{place} is no valid JSON: {failure.msg}", "write one JSON object a line") from None
    except (ValueError, RecursionError) as failure:  # an integer of thousands of digits, nesting without an end
        raise DataError(f"{place} cannot be parsed: {_first_line(failure)}", "mend or remove that line") from None


def _text_of_row(row: Any, field: TextField, place: str) -> str:
    if not isinstance(row, Mapping):
        raise DataError(
            f"{place} is of type {type(row).__name__}; accepted is an object", "write one JSON object a line"
        )
    if field.name not in row:
        raise DataError(
            f"{place} has no field '{field.name}'; found: {', '.join(map(str, row)) or 'none'}",
            f"set {field.setting} to the key of the text",
        )
    text = row[field.name]
    if not isinstance(text, str):
        raise DataError(
            f"{place}: field '{field.name}' is of type {type(text).__name__}; accepted is a string",
            f"set {field.setting} to the key of the text",
        )
    # JSON can spell half of a surrogate pair, which is no character and has no UTF-8 form.
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{place}: field '{field.name}' holds half of a surrogate pair", "mend the escape in that line")
    return text
