"""A document, the role that everything with documents plays, and the checks that all text passes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from moesaic.errors import DataError


@dataclass(frozen=True)
class Document:
    """A text with a name.

    Attributes:
        name: where it came from, for people: 'json/decoder.py', 'questions.jsonl:12'.
        text: the content, line ends as found.
        num_bytes: how much of the source it stands for; drives progress.
    """

    name: str
    text: str
    num_bytes: int


class NoTextError(DataError):
    """A source in which there is no text."""


class Source(Protocol):
    """Something with documents in a fixed order.

    Attributes:
        name: as the user wrote it.
        num_bytes: size of all documents together; None where only reading tells.
    """

    name: str
    num_bytes: int | None

    @property
    def has_fields(self) -> bool:
        """Whether some of it is rows, of which one field is the text."""
        ...

    def documents(self) -> Iterator[Document]:
        """Yield the documents, always in the same order; raises DataError at the first unusable one.

        It raises NoTextError where there is none.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return plain data that changes when the documents do, not when their folder moves."""
        ...


def read_file(path: Path) -> bytes:
    """Return the content of a file, or raise a DataError that names it."""
    try:
        return path.read_bytes()
    except OSError as failure:
        raise cannot_read(path, failure) from None


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, or raise a DataError that names it."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as failure:
        raise cannot_read(path, failure) from None


def cannot_read(path: Path, failure: OSError) -> DataError:
    """Return the error for a file that the system does not give."""
    return DataError(f"cannot read '{path}': {failure.strerror}", "check the path and its permissions")


def decode_text(content: bytes, path: Path) -> str:
    """Return the text of a file's content, without a byte order mark.

    Raises:
        DataError: a NUL byte, or bytes that are not UTF-8; the text tells where.
    """
    if b"\0" in content:
        raise DataError(
            f"'{path}' is binary: byte {content.index(0)} is NUL",
            "give text in UTF-8, or narrow data.include",
        )
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as failure:
        raise DataError(
            f"'{path}' is not UTF-8: byte {failure.start} is 0x{content[failure.start]:02x}",
            "convert it to UTF-8 (iconv -f latin1 -t utf-8, say), or narrow data.include",
        ) from None
