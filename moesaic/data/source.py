"""From what a recipe names to the source that reads it.

python-stdlib          the source text of this Python's library
hf:NAME                a dataset of the Hugging Face hub     (extra: data)
folder/                the files that data.include matches, each as below
file.jsonl             the field of each line
file.parquet           the column of each row                (extra: data)
any other file         one document
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from moesaic.config.data import DataConfig
from moesaic.data.document import Source
from moesaic.data.rows import HubSource, JsonlSource, ParquetSource, TextField
from moesaic.data.text import PYTHON_STDLIB, FolderSource, TextFileSource, open_python_stdlib
from moesaic.errors import ConfigError, DataError, nearest_hint

DEFAULT_FIELD = "text"
HUB_PREFIX = "hf:"

BUILT_IN: dict[str, Callable[[], Source]] = {
    PYTHON_STDLIB: open_python_stdlib,
}

ROW_FILES: dict[str, Callable[[str, Path, TextField], Source]] = {
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


def open_sources(config: DataConfig) -> list[Source]:
    """Return the sources of a recipe in the order of its parts.

    Raises:
        DataError: see `open_source`.
        ConfigError: a field is named for sources without fields, or see `open_source`.
    """
    settings = [f"data.mixture.{number}.field" for number in range(len(config.mixture))] or ["data.field"]
    sources = [
        open_source(part.source, TextField(part.field or DEFAULT_FIELD, setting), config.include)
        for part, setting in zip(config.parts, settings, strict=True)
    ]
    own = [part.field for part in config.mixture] or [None]
    inheriting = [source for source, field in zip(sources, own, strict=True) if field is None]
    _check_field("data.field", config.field, inheriting)
    for setting, field, source in zip(settings, own, sources, strict=True):
        _check_field(setting, field, [source])
    return sources


def open_source(spec: str, field: TextField, include: Sequence[str]) -> Source:
    """Return the source that a recipe names; little is read before its documents are asked for.

    Args:
        spec: see the table of this module.
        field: where the text of rows is.
        include: name patterns of the files that are read of a folder.

    Raises:
        DataError: there is no such file or folder, or its format is not read.
        ConfigError: a library is missing, or the name of a hub dataset cannot be read.
    """
    if spec.startswith(HUB_PREFIX):
        return HubSource(spec, field)
    if spec in BUILT_IN:
        return BUILT_IN[spec]()
    path = Path(spec).expanduser()
    if path.is_dir():
        return FolderSource(spec, path, include, open_fn=lambda name, file: _open_file(name, file, field))
    if not path.is_file():
        raise DataError(f"no file or folder at '{spec}'", _hint_for_missing(spec))
    suffix = path.suffix.lower()
    if suffix in REFUSED_FILES:
        raise DataError(f"'{spec}' is a {suffix} file, which is not read", REFUSED_FILES[suffix])
    return _open_file(spec, path, field)


def _open_file(name: str, path: Path, field: TextField) -> Source:
    open_rows = ROW_FILES.get(path.suffix.lower())
    return TextFileSource(name, path) if open_rows is None else open_rows(name, path, field)


def _check_field(setting: str, field: str | None, sources: Sequence[Source]) -> None:
    """Refuse a field that none of the sources it is meant for would read."""
    if field is not None and sources and not any(source.has_fields for source in sources):
        names = ", ".join(f"'{source.name}'" for source in sources)
        raise ConfigError(
            f"{setting} is '{field}', but source {names} has no fields", f"leave {setting} out, or name rows"
        )


def _hint_for_missing(spec: str) -> str:
    hint = nearest_hint(spec, BUILT_IN)
    return hint if hint.startswith("did you mean") else f"give a path, {HUB_PREFIX}NAME or {', '.join(BUILT_IN)}"
