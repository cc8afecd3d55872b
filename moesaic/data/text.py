"""Sources of whole files: a single text file, a folder of them, and this Python's own library.

A folder is read in the sorted order of its relative paths, so the same files give the same stream of text on
every machine.
"""

import fnmatch
import hashlib
import os
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from moesaic.data.document import Document, cannot_read, decode_text, read_file
from moesaic.errors import DataError

PYTHON_STDLIB = "python-stdlib"

# Installed packages are no part of the library, and its tests hold files that are broken on purpose.
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo"})


class TextFileSource:
    """A file as one document."""

    def __init__(self, name: str, path: Path) -> None:
        """Take a file that exists."""
        self.name = name
        self.num_bytes: int | None = path.stat().st_size
        self._path = path

    def documents(self) -> Iterator[Document]:
        """Yield the one document.

        Raises:
            DataError: the file is empty, binary or not UTF-8.
        """
        content = read_file(self._path)
        text = decode_text(content, self._path)
        if not text.strip():
            raise DataError(f"'{self._path}' is empty", "give a file with text")
        yield Document(self._path.name, text, len(content))

    def fingerprint(self) -> dict[str, Any]:
        """Return the file's name, size and hash."""
        return {
            "kind": "file",
            "path": self._path.name,
            "bytes": self.num_bytes,
            "sha256": hash_file(self._path),
        }


class FolderSource:
    """The files of a folder, and of the folders in it, as a document each; empty files are passed over."""

    def __init__(self, name: str, root: Path, include: Sequence[str], skipped_folders: Collection[str] = ()) -> None:
        """List the files.

        Args:
            name: as the user wrote it.
            root: the folder.
            include: patterns; a file is read when its name or its relative path matches one.
            skipped_folders: names of folders that are not entered; hidden ones and caches never are.

        Raises:
            DataError: no file matches.
        """
        self.name = name
        self._root = root
        self._paths = sorted(_matching_files(root, include, skipped_folders))
        if not self._paths:
            raise DataError(
                f"folder '{root}' holds no file that matches {', '.join(include)}",
                "change data.include or the folder",
            )
        self.num_bytes: int | None = sum((root / path).stat().st_size for path in self._paths)

    def documents(self) -> Iterator[Document]:
        """Yield the files in the order of their relative paths.

        Raises:
            DataError: a file is binary or not UTF-8, or all are empty.
        """
        found = False
        for relative in self._paths:
            path = self._root / relative
            content = read_file(path)
            text = decode_text(content, path)
            if text.strip():
                found = True
                yield Document(relative, text, len(content))
        if not found:
            raise DataError(f"all {len(self._paths)} files of folder '{self._root}' are empty", "give files with text")

    def fingerprint(self) -> dict[str, Any]:
        """Return the number and size of the files, and one hash over their paths and contents."""
        whole = hashlib.sha256()
        for relative in self._paths:
            whole.update(f"{relative}\0{hash_file(self._root / relative)}\n".encode("utf-8", "surrogateescape"))
        return {
            "kind": "folder",
            "files": len(self._paths),
            "bytes": self.num_bytes,
            "sha256": whole.hexdigest(),
        }


def open_python_stdlib() -> FolderSource:
    """Return the source text of the running Python's library: real code, on every machine, offline.

    Raises:
        DataError: this Python was installed without the sources of its library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    return FolderSource(PYTHON_STDLIB, root, ["*.py"], _NOT_LIBRARY)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex; a file that has not changed is read once per process."""
    try:
        stat = path.stat()
        return _hash_content(path, stat.st_size, stat.st_mtime_ns)
    except OSError as failure:
        raise cannot_read(path, failure) from None


@lru_cache(maxsize=65536)
def _hash_content(path: Path, num_bytes: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matching_files(root: Path, include: Sequence[str], skipped_folders: Collection[str]) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name != "__pycache__" and name not in skipped_folders
        ]
        for name in files:
            relative = (Path(folder) / name).relative_to(root).as_posix()
            if not name.startswith(".") and _matches(name, relative, include):
                yield relative


def _matches(name: str, relative: str, include: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(relative, p) for p in include)
