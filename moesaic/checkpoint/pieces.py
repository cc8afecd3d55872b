"""Parameters and expert pages as pieces of a checkpoint's files."""

from collections.abc import Iterator

import torch

from moesaic.checkpoint.mapping import Source
from moesaic.checkpoint.tensors import DTYPES, StoredTensor, TensorFolder
from moesaic.memory.page import Extent, Page, PageLayout, Piece


def pieces_of(source: Source, kept: torch.dtype, tensors: TensorFolder) -> Page:
    """Return what fills a whole parameter of dtype `kept`: all that it is made of, one after another."""
    return tuple(_line_up([tensors.stored[name] for name in source.names], kept, 0))


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
            own = [tensors.stored[each] for each in names]
        pieces += _line_up(own, field.dtype, field.start)
    return tuple(pieces)


def _row(stacked: StoredTensor, index: int) -> StoredTensor:
    """Return one of the tensors that lie stacked along the first dimension."""
    size = stacked.extent.num_bytes // stacked.shape[0]
    extent = Extent(stacked.extent.file, stacked.extent.offset + index * size, size)
    return StoredTensor(extent, stacked.shape[1:], stacked.dtype)


def _line_up(stored: list[StoredTensor], kept: torch.dtype, start: int) -> Iterator[Piece]:
    for each in stored:
        dtype = DTYPES[each.dtype]
        yield Piece(each.extent, dtype, kept, start)
        start += each.extent.num_bytes // dtype.itemsize * kept.itemsize
