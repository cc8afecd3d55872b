"""The files of a tokenizer, read and parsed but not yet understood."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.errors import DataError

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

_SLOW_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder tells about its tokenizer; a file that is not there is empty.

    Attributes:
        content: text of tokenizer.json.
        settings: tokenizer_config.json.
        token_map: special_tokens_map.json.
        generation: generation_config.json.
        template: text of chat_template.jinja; None: no such file.
    """

    content: str
    settings: dict[str, Any]
    token_map: dict[str, Any]
    generation: dict[str, Any]
    template: str | None


def read_tokenizer_files(path: Path) -> TokenizerFiles:
    """Read a tokenizer.json and the files beside it; `path` is the file or its folder.

    Raises:
        DataError: there is no tokenizer.json, or a file cannot be read.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise _missing_tokenizer(path)
    folder = file.parent
    template_file = folder / TEMPLATE_FILE
    return TokenizerFiles(
        content=_read_text(file),
        settings=_read_json(folder / SETTINGS_FILE),
        token_map=_read_json(folder / "special_tokens_map.json"),
        generation=_read_json(folder / "generation_config.json"),
        template=_read_text(template_file) if template_file.is_file() else None,
    )


def _missing_tokenizer(path: Path) -> DataError:
    if not path.is_dir():
        return DataError(f"no tokenizer at '{path}'", f"give a {TOKENIZER_FILE} or a folder that holds one")
    slow = [name for name in _SLOW_FILES if (path / name).is_file()]
    if slow:
        return DataError(
            f"'{path}' holds a tokenizer as {', '.join(slow)}, which is not read; needed is {TOKENIZER_FILE}",
            "convert it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers",
        )
    return DataError(
        f"folder '{path}' holds no {TOKENIZER_FILE}",
        "copy it from the checkpoint, or give prompts as token ids",
    )


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise DataError(f"cannot read '{file}': {failure}", "give a UTF-8 text file") from None


def _read_json(file: Path) -> dict[str, Any]:
    """Return the object in a file, empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        tree = json.loads(_read_text(file))
    except json.JSONDecodeError as failure:
        raise DataError(f"'{file}' is no valid JSON: {failure}", "mend the named line") from None
    if not isinstance(tree, dict):
        raise DataError(f"'{file}' is of type {type(tree).__name__}; accepted is an object", "replace the file")
    return tree
