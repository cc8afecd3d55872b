"""Pages on their way from a source to slots."""

import queue
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from moesaic.memory.cache import Key, PageCache, Reason
from moesaic.memory.disk import Reading
from moesaic.memory.page import Page, stored_bytes
from moesaic.memory.source import Slots, Source

Record = TypeVar("Record")


class Loader(Generic[Record]):
    """Fills slots with pages. One thread calls; those of the source only read and report.

    Args:
        pages: by layer, the page of each expert.
        cache: which page is in which slot.
        pool: the slots.
        source: where pages come from.

    Attributes:
        stall_seconds: waited for pages.
    """

    def __init__(
        self,
        pages: Mapping[int, Sequence[Page]],
        cache: PageCache,
        pool: Slots[Record],
        source: Source[Record],
    ) -> None:
        self.stall_seconds = 0.0
        self._pages = pages
        self._cache = cache
        self._pool = pool
        self._source = source
        self._page_bytes = stored_bytes(next(iter(pages.values()))[0])
        self._readings: dict[Key, Reading] = {}
        self._arrived: queue.SimpleQueue[Key] = queue.SimpleQueue()

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing is being read."""
        return not self._readings

    @property
    def page_seconds(self) -> float | None:
        """Return the measured time to read a page, when many are read; None: none was yet."""
        if self._source.bytes_read == 0:
            return None
        return self._page_bytes * self._source.busy_seconds / self._source.bytes_read

    def is_here(self, key: Key) -> bool:
        """Tell whether a page is resident or on its way."""
        return key in self._readings or key[1] in self._cache.slots_of(key[0])

    def begin(self, key: Key, reason: Reason, urgent: bool) -> bool:
        """Begin to read a page; return whether there is a slot for it."""
        slot = self._cache.begin(key, reason)
        if slot is None:
            return False
        page = self._pages[key[0]][key[1]]
        self._readings[key] = self._source.read(page, self._pool.record(slot), partial(self._arrived.put, key), urgent)
        return True

    def collect(self, wait: bool) -> dict[Key, Exception]:
        """Take in the pages that have arrived, if asked to wait, at least one; return what failed."""
        failures = {}
        if wait:
            assert self._readings, "something is waited for, and nothing is on its way"
            begin = time.perf_counter()
            keys = [self._arrived.get()]
            self.stall_seconds += time.perf_counter() - begin
        else:
            keys = []
        while not self._arrived.empty():
            keys.append(self._arrived.get())
        for key in keys:
            failure = self._readings.pop(key).failure
            self._cache.end(key, arrived=failure is None)
            if failure is not None:
                failures[key] = failure
        return failures

    def places(self, layer: int, experts: Sequence[int]) -> Tensor:
        """Return the slots of resident experts: int64 [E] on the host, -1 for all others."""
        slots, places = self._cache.slots_of(layer), [-1] * len(self._pages[layer])
        for expert in experts:
            places[expert] = slots[expert]
        return torch.tensor(places, device="cpu")
