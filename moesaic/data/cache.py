"""Folders that are computed once and kept: prepared tokens and trained tokenizers.

A folder's name is a hash of everything its content depends on. It is filled under another name and renamed
when it is complete and on the disk, so a reader sees all of it or nothing, also after a power cut, and of two
processes that fill the same one the second finds the first one's and uses it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from moesaic.errors import DataError
from moesaic.flush import flush_tree

Opened = TypeVar("Opened")

_RENAME_ATTEMPTS = 5


def cache_root(given: str | None) -> Path:
    """Return the folder of all cached data: the given one, $MOESAIC_CACHE, or ~/.cache/moesaic/data."""
    if given is not None:
        return Path(given).expanduser()
    from_environment = os.environ.get("MOESAIC_CACHE")
    return Path(from_environment).expanduser() if from_environment else Path.home() / ".cache" / "moesaic" / "data"


def digest_of(tree: Any) -> str:
    """Return a hash of plain data in 32 hex digits, the same on every machine."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def open_or_fill(folder: Path, open_fn: Callable[[Path], Opened], fill_fn: Callable[[Path], None]) -> Opened:
    """Return what `open_fn` makes of a cached folder, after filling it where it is missing or damaged.

    Args:
        folder: the final name.
        open_fn: reads a complete folder; raises OSError, ValueError, KeyError or DataError on a damaged one.
        fill_fn: writes the content into the empty folder it is given.

    Raises:
        DataError: the folder cannot be written; or what `fill_fn` raises.
    """
    opened = _try_open(folder, open_fn)
    if opened is not None:
        return opened
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        filled = Path(tempfile.mkdtemp(prefix=".filling-", dir=folder.parent))
    except OSError as failure:
        raise _cannot_write(folder, failure) from None
    try:
        fill_fn(filled)
        # Readers check sizes, and zeros that a power cut left have the right size.
        flush_tree(filled)
        return _publish(filled, folder, open_fn)
    except OSError as failure:
        raise _cannot_write(folder, failure) from None
    finally:
        shutil.rmtree(filled, ignore_errors=True)


def _publish(filled: Path, folder: Path, open_fn: Callable[[Path], Opened]) -> Opened:
    for _ in range(_RENAME_ATTEMPTS):
        with suppress(OSError):  # another process may have been first
            filled.rename(folder)
        opened = _try_open(folder, open_fn)
        if opened is not None:
            return opened
        _set_aside(folder)
    raise OSError(f"'{folder}' stays damaged")


def _try_open(folder: Path, open_fn: Callable[[Path], Opened]) -> Opened | None:
    if not folder.is_dir():
        return None
    try:
        return open_fn(folder)
    except (OSError, ValueError, KeyError, DataError):
        return None


def _set_aside(folder: Path) -> None:
    """Move a damaged folder away, then remove it: a rename is whole where a removal is not."""
    aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
    with suppress(FileNotFoundError):
        folder.rename(aside / "folder")
    shutil.rmtree(aside, ignore_errors=True)


def _cannot_write(folder: Path, failure: OSError) -> DataError:
    return DataError(
        f"cannot write tokenised text under '{folder.parent}': {failure.strerror or failure}",
        "set data.cache, or the variable MOESAIC_CACHE, to a folder with room that you may write",
    )
