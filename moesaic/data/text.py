"""Sources of whole files: a single text file, a folder of them, and this Python's own library.

A folder is read in the sorted order of its relative paths, so the same files give the same stream of text on
every machine. Each of its files is a source of its own.
"""

import fnmatch
import hashlib
import os
import sysconfig
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from moesaic.data.document import Document, NoTextError, Source, cannot_read, decode_text, read_file
from moesaic.errors import DataError

PYTHON_STDLIB = "python-stdlib"

# Installed packages are no part of the library, and its tests hold files that are broken on purpose.
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo"})


class TextFileSource:
    """A file as one document."""

    has_fields = False

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
            raise NoTextError(f"'{self._path}' is empty", "give a file with text")
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
    """The files of a folder, and of the folders in it, one after another; empty files are passed over."""

    def __init__(
        self,
        name: str,
        root: Path,
        include: Sequence[str],
        skipped_folders: Collection[str] = (),
        open_fn: Callable[[str, Path], Source] = TextFileSource,
    ) -> None:
        """List the files.

        Args:
            name: as the user wrote it.
            root: the folder.
            include: patterns; a file is read when its name or its relative path matches one.
            skipped_folders: names of folders that are not entered; hidden ones and caches never are.
            open_fn: from a file's name and path to its source.

        Raises:
            DataError: no file matches.
        """
        self.name = name
        self._root = root
        paths = sorted(_matching_files(root, include, skipped_folders))
        self._files = {relative: open_fn(relative, root / relative) for relative in paths}
        if not self._files:
            raise DataError(
                f"folder '{root}' holds no file that matches {', '.join(include)}",
                "change data.include or the folder",
            )
        sizes = [file.num_bytes for file in self._files.values()]
        self.num_bytes: int | None = None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def has_fields(self) -> bool:
        """Whether some files hold rows."""
        return any(file.has_fields for file in self._files.values())

    def documents(self) -> Iterator[Document]:
        """Yield the documents of the files, in the order of the relative paths, which are part of their names.

        Raises:
            DataError: a file cannot be read as what it is, or all are empty.
        """
        found = False
        for relative, file in self._files.items():
            with suppress(NoTextError):
                for document in file.documents():
                    found = True
                    yield replace(document, name=Path(relative).with_name(document.name).as_posix())
        if not found:
            raise NoTextError(
                f"all {len(self._files)} files of folder '{self._root}' are empty", "give files with text"
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return the number and size of the files, one hash over their paths and contents, and the field of rows."""
        whole = hashlib.sha256()
        fields = {}
        for relative, file in self._files.items():
            found = file.fingerprint()
            whole.update(f"{relative}\0{found['sha256']}\n".encode("utf-8", "surrogateescape"))
            if file.has_fields:
                fields["field"] = found["field"]
        return {
            "kind": "folder",
            "files": len(self._files),
            "bytes": self.num_bytes,
            "sha256": whole.hexdigest(),
            **fields,
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
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            # A link to nowhere, a socket and their like hold no text.
            if not name.startswith(".") and _matches(name, relative, include) and os.path.isfile(path):
                yield relative


def _matches(name: str, relative: str, include: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(relative, p) for p in include)
