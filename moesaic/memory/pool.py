"""The slots that pages are read into: one stretch of memory, cut into records of equal size."""

import mmap

import numpy as np
import torch
from torch import Tensor

from moesaic.memory.page import PageLayout


class Pool:
    """S equal slots; a slot takes memory once something has been written to it.

    Attributes:
        memory: the bytes of all slots.
        fields: each field of the layout as a tensor [S, ...] over all slots.
    """

    def __init__(self, layout: PageLayout, num_slots: int) -> None:
        self.layout = layout
        self.num_slots = num_slots
        # Of this process alone: shared memory, Python's default, is seldom given huge pages.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, max(num_slots * layout.num_bytes, mmap.PAGESIZE), flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # The system gives memory out four times as fast in them.
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.memory = np.frombuffer(self._memory, np.uint8, num_slots * layout.num_bytes)
        self._records = self.memory.reshape(num_slots, layout.num_bytes)
        self.fields: dict[str, Tensor] = layout.views(torch.from_numpy(self._records))

    def record(self, slot: int) -> np.ndarray:
        """Return the bytes of a slot."""
        return self._records[slot]

    def give_back(self, slot: int) -> None:
        """Return a slot's memory to the system; what it held is gone."""
        self._memory.madvise(mmap.MADV_DONTNEED, slot * self.layout.num_bytes, self.layout.num_bytes)
