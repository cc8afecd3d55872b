"""Experts as they come from the disk, one record after another."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from moesaic.memory.disk import Disk
from moesaic.memory.page import Page, PageLayout
from moesaic.memory.pool import Pool


def read_records(pages: Sequence[Page], layout: PageLayout, disk: Disk) -> Iterator[dict[str, Tensor]]:
    """Yield the fields of each page in turn; while one is looked at, the next one is read.

    Their memory is that of the page after the next: two records in all.

    Raises:
        CheckpointError: a page cannot be read.
    """
    pool = Pool(layout, 2)
    readings = [disk.read(page, pool.record(slot)) for slot, page in enumerate(pages[:2])]
    for turn in range(len(pages)):
        slot = turn % 2
        readings[slot].wait()
        yield {name: values[slot] for name, values in pool.fields.items()}
        if turn + 2 < len(pages):
            readings[slot] = disk.read(pages[turn + 2], pool.record(slot))


def read_stacked(
    pages: Mapping[int, Sequence[Page]], layout: PageLayout, dtype: torch.dtype, disk: Disk
) -> Iterator[tuple[str, Tensor]]:
    """Yield the experts of each layer as parameters of a dtype, by our names.

    Raises:
        CheckpointError: a page cannot be read.
    """
    for layer, each in pages.items():
        stacked = {name: torch.empty(len(each), *field.shape, dtype=dtype) for name, field in layout.fields.items()}
        for expert, record in enumerate(read_records(each, layout, disk)):
            for name, values in record.items():
                stacked[name][expert] = values
        for name, parameter in stacked.items():
            yield f"decoder.layers.{layer}.moe.experts.{name}", parameter
