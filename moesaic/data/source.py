"""From what a recipe names to the source that reads it.

python-stdlib          the source text of this Python's library
hf:NAME                a dataset of the Hugging Face hub     (extra: data)
folder/                the files that data.include matches
file.jsonl             the field of each line
file.parquet           the column of each row                (extra: data)
any other file         one document
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from moesaic.data.document import Source
from moesaic.data.rows import HubSource, JsonlSource, ParquetSource
from moesaic.data.text import PYTHON_STDLIB, FolderSource, TextFileSource, open_python_stdlib
from moesaic.errors import ConfigError, DataError, nearest_hint

DEFAULT_FIELD = "text"
HUB_PREFIX = "hf:"

BUILT_IN: dict[str, Callable[[], Source]] = {
    PYTHON_STDLIB: open_python_stdlib,
}

ROW_FILES: dict[str, Callable[[str, Path, str], Source]] = {
    ".jsonl": JsonlSource,
    ".parquet": ParquetSource,
}

# Formats that people try, each with what to do instead.
REFUSED_FILES: dict[str, str] = {
    ".json": "write one JSON object a line into a .jsonl file, or the plain text into a .txt file",
    ".csv": "convert it to .jsonl or .parquet, and name the column in data.field",
    ".gz": "unpack it first",
    ".zip": "unpack it first",
    ".zst": "unpack it first",
}


def open_source(spec: str, field: str | None, include: Sequence[str]) -> Source:
    """Return the source that a recipe names; little is read before its documents are asked for.

    Args:
        spec: see the table of this module.
        field: key of the text in rows; None: 'text'.
        include: name patterns of the files that are read of a folder.

    Raises:
        DataError: there is no such file or folder, or its format is not read.
        ConfigError: a field is named for a source without fields, or a library is missing.
    """
    path = Path(spec).expanduser()
    if spec.startswith(HUB_PREFIX):
        return HubSource(spec, field or DEFAULT_FIELD)
    if path.suffix in ROW_FILES and path.is_file():
        return ROW_FILES[path.suffix](spec, path, field or DEFAULT_FIELD)
    if field is not None:
        raise ConfigError(
            f"data.field is '{field}', but source '{spec}' has no fields",
            "leave data.field out, or name rows",
        )
    if spec in BUILT_IN:
        return BUILT_IN[spec]()
    if path.is_dir():
        return FolderSource(spec, path, include)
    if not path.is_file():
        raise DataError(f"no file or folder at '{spec}'", _hint_for_missing(spec))
    if path.suffix in REFUSED_FILES:
        raise DataError(f"'{spec}' is a {path.suffix} file, which is not read", REFUSED_FILES[path.suffix])
    return TextFileSource(spec, path)


def _hint_for_missing(spec: str) -> str:
    hint = nearest_hint(spec, BUILT_IN)
    return hint if hint.startswith("did you mean") else f"give a path, {HUB_PREFIX}NAME or {', '.join(BUILT_IN)}"
