"""What makes written content outlive a power cut.

A rename may reach the disk before the content that it publishes; after the cut, the name then stands for zeros.
So content is flushed first.
"""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk; raises OSError where it cannot be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Flush every file and folder below a folder, and itself."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def replace_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 so that its name stands for the old content or the new one, whatever happens.

    Raises:
        OSError: the content cannot be written; the old one is as it was.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        beside.write_text(text, encoding="utf-8", newline="\n")
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)
