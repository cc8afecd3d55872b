"""Parameters and expert pages as pieces of a checkpoint's files."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from moesaic.checkpoint.mapping import Source
from moesaic.checkpoint.tensors import DTYPES, StoredTensor, TensorFolder
from moesaic.memory.page import Page, PageLayout, Piece


def pieces_of(source: Source, kept: torch.dtype, tensors: TensorFolder) -> Page:
    """Return what fills a whole parameter of dtype `kept`: all that it is made of, one after another."""
    return tuple(_line_up([_all_of(tensors.stored[name]) for name in source.names], kept, 0))


def page_of(expert: int, sources: dict[str, Source], layout: PageLayout, tensors: TensorFolder) -> Page:
    """Return the page of one expert of a layer.

    Args:
        expert: its index.
        sources: of the stacked parameters, by the names that the layout has.
        layout: of the record.
        tensors: what is stored.
    """
    pieces: list[Piece] = []
    for name, field in layout.fields.items():
        source = sources[name]
        if source.parts is None:
            own = [_row(tensors.stored[source.names[0]], expert)]
        else:
            names = source.names[expert * source.parts : (expert + 1) * source.parts]
            own = [_all_of(tensors.stored[each]) for each in names]
        pieces += _line_up(own, field.dtype, field.start)
    return tuple(pieces)


@dataclass(frozen=True)
class _Part:
    """Bytes begin..end of a stored tensor, row-major."""

    tensor: StoredTensor
    begin: int
    end: int


def _all_of(tensor: StoredTensor) -> _Part:
    return _Part(tensor, 0, tensor.num_bytes)


def _row(stacked: StoredTensor, index: int) -> _Part:
    """Return one of the tensors that lie stacked along the first dimension."""
    size = stacked.num_bytes // stacked.shape[0]
    return _Part(stacked, index * size, (index + 1) * size)


def _line_up(parts: list[_Part], kept: torch.dtype, start: int) -> Iterator[Piece]:
    for part in parts:
        dtype = DTYPES[part.tensor.dtype]
        for place, extent in part.tensor.runs(part.begin, part.end):
            yield Piece(extent, dtype, kept, start + place // dtype.itemsize * kept.itemsize)
        start += (part.end - part.begin) // dtype.itemsize * kept.itemsize
