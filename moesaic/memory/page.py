"""An expert as a page: the record that a slot holds, and the runs of bytes on disk that fill it.

A page is read where the checkpoint has it. The tensors of one expert may lie far apart, in several files, at any
offset and in another dtype than the model computes in; in memory they are one record.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

# Of records: the largest unit that a disk asks of direct reads, and a page of the processor's memory.
ALIGNMENT = 4096
# Of fields within a record: a line of the processor's caches.
_LINE = 64


@dataclass(frozen=True)
class Extent:
    """A run of bytes in a file."""

    file: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Piece:
    """Values on disk that go to one place of a record.

    Attributes:
        extent: where they are.
        stored, kept: their dtype on disk and in the record.
        start: byte of the record that the first one goes to.
        checksum: zlib.crc32 of the bytes, where they are kept as they are stored; None: not known.
    """

    extent: Extent
    stored: torch.dtype
    kept: torch.dtype
    start: int
    checksum: int | None = None


@dataclass(frozen=True)
class Field:
    """A tensor within a record, contiguous, from byte `start` on."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Return what its values take."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class PageLayout:
    """What a record holds: named tensors, each from a multiple of 64 bytes on.

    Attributes:
        fields: by name, in order.
        num_bytes: of a record, a multiple of `ALIGNMENT`.
    """

    fields: Mapping[str, Field]
    num_bytes: int

    @staticmethod
    def of(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> "PageLayout":
        """Lay out tensors of these shapes and dtypes one after another."""
        fields, end = {}, 0
        for name, (shape, dtype) in tensors.items():
            fields[name] = Field(_round_up(end, _LINE), shape, dtype)
            end = fields[name].start + fields[name].num_bytes
        return PageLayout(fields, _round_up(end, ALIGNMENT))

    def views(self, records: Tensor) -> dict[str, Tensor]:
        """Return each field of records, uint8 [S, num_bytes], as a tensor [S, ...] on the same memory."""
        return {
            name: records[:, field.start : field.start + field.num_bytes].view(field.dtype).unflatten(1, field.shape)
            for name, field in self.fields.items()
        }


Page = tuple[Piece, ...]


def without_checksums(page: Page) -> Page:
    """Return a page that is not compared with what was written."""
    return tuple(replace(piece, checksum=None) for piece in page)


def stored_bytes(page: Page) -> int:
    """Return how many bytes of files a page takes."""
    return sum(piece.extent.num_bytes for piece in page)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
