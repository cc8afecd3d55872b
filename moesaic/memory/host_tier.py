"""The middle tier: pages in host memory, between the disk and a device.

    disk -- read --> host slot -- copy --> device slot

A page that has been read stays in its host slot, and is only copied when the device asks for it again. The slot whose
page was copied longest ago is filled anew first: what the device keeps is not copied, and leaves the host before the
rest. A slot that is being read into or copied from stays; where all do, pages wait for one.

The caller asks, threads of the disk read, one thread copies: three at work at once on different pages.
"""

import heapq
import itertools
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moesaic.memory.copy_stream import open_copy_stream
from moesaic.memory.disk import Disk, Reading
from moesaic.memory.page import Page, stored_bytes
from moesaic.memory.pool import Pool

# Begun before the first of them is waited for, so that the device is never idle between two.
_MOST_COPIES = 2


@dataclass
class _Journey:
    """A page on its way to the device.

    Attributes:
        page: which.
        record: of the device.
        rank: 0 if urgent, else 1.
        mark: of the device's work that may still read the record.
        arrival: what the caller has of it.
        slot: of the host, once there is one.
        reading: of the disk, if it has to.
    """

    page: Page
    record: Tensor
    rank: int
    mark: Any
    arrival: Reading
    slot: int = -1
    reading: Reading | None = None


class HostTier:
    """Brings pages to records of a device, from host slots or through them. One thread asks.

    Args:
        disk: where pages come from; nobody else reads from it meanwhile.
        pool: the host slots, at least one; nobody else uses them.
        device: whose memory the records are.

    Attributes:
        hits: pages asked for that were in a host slot.
        misses: those that had to be read.
        bytes_copied: to the device, so far.
        bytes_read, busy_seconds: as `Source` says.

    Raises:
        UnsupportedError: the slots cannot be pinned.
    """

    def __init__(self, disk: Disk, pool: Pool, device: torch.device) -> None:
        assert pool.num_slots > 0, "pages pass through host slots"
        self.hits = self.misses = 0
        self.bytes_copied = self.bytes_read = 0
        self.busy_seconds = 0.0
        self._disk = disk
        self._pool = pool
        self._stream = open_copy_stream(device)
        self._stream.pin(pool.memory)
        # All below is of whoever has the lock. A slot is free, or read into, or held.
        self._lock = threading.Lock()
        self._free = list(range(pool.num_slots))
        self._held: OrderedDict[Page, int] = OrderedDict()  # what was copied longest ago first
        self._busy: set[Page] = set()  # asked for, and not yet there
        self._waiting: list[tuple[int, int, _Journey]] = []  # for a slot, a heap
        self._serial = itertools.count()
        self._busy_since = 0.0
        # (rank, serial, journey): what is urgent first, then in order; None ends the thread.
        self._copies: queue.PriorityQueue[tuple[int, int, _Journey | None]] = queue.PriorityQueue()
        self._thread: threading.Thread | None = threading.Thread(target=self._serve, name="moesaic-copy", daemon=True)
        self._thread.start()

    def read(
        self, page: Page, record: Tensor, on_end: Callable[[], None] | None = None, urgent: bool = True
    ) -> Reading:
        """Begin to fill a record.

        Args:
            page: what to bring; not on its way already.
            record: uint8 [layout.num_bytes] of the device. What the caller has launched may still read it; nothing
                later may, before the end.
            on_end: called by another thread when all is there, or never will be.
            urgent: before all that is not.
        """
        assert self._thread is not None, "a closed tier brings no more"
        arrival = Reading(1, _find_no_damage, on_end)
        journey = _Journey(page, record, 0 if urgent else 1, self._stream.mark(), arrival)
        with self._lock:
            assert page not in self._busy, "a page is brought once at a time"
            if not self._busy:
                self._busy_since = time.perf_counter()
            self._busy.add(page)
            if page in self._held:
                self.hits += 1
                self._copy(journey)
            else:
                self.misses += 1
                heapq.heappush(self._waiting, (journey.rank, next(self._serial), journey))
                self._begin_readings()
        return arrival

    def close(self) -> None:
        """End the threads, the disk's too, and give the slots' memory back. What waits for a slot never ends."""
        if self._thread is None:
            return
        with self._lock:
            self._waiting.clear()
        self._disk.close()
        self._copies.put((2, 0, None))
        self._thread.join()
        self._thread = None
        self._stream.unpin(self._pool.memory)
        for slot in range(self._pool.num_slots):
            self._pool.give_back(slot)

    def _begin_readings(self) -> None:
        """Read what waits, as long as there are slots. With the lock."""
        while self._waiting and (slot := self._take_slot()) is not None:
            journey = heapq.heappop(self._waiting)[2]
            journey.slot = slot
            record, end = self._pool.record(slot), partial(self._end_reading, journey)
            journey.reading = self._disk.read(journey.page, record, end, urgent=journey.rank == 0)

    def _take_slot(self) -> int | None:
        """Return a slot that is free, or made so; None: all are read into or copied from. With the lock."""
        if self._free:
            return self._free.pop()
        page = next((page for page in self._held if page not in self._busy), None)
        return None if page is None else self._held.pop(page)

    def _copy(self, journey: _Journey) -> None:
        """Let a held page be copied. With the lock."""
        self._held.move_to_end(journey.page)
        journey.slot = self._held[journey.page]
        self._copies.put((journey.rank, next(self._serial), journey))

    def _end_reading(self, journey: _Journey) -> None:
        """Go on with what the disk has read; called by a thread of it."""
        with self._lock:
            assert journey.reading is not None, "begun with the lock"
            failure = journey.reading.failure
            if failure is None:
                self._held[journey.page] = journey.slot
                self._copy(journey)
                return
            self._free.append(journey.slot)
        self._end(journey, failure)

    def _serve(self) -> None:
        begun: deque[tuple[_Journey, Callable[[], None]]] = deque()
        is_open = True
        while is_open or begun:
            if is_open and len(begun) < _MOST_COPIES and not (begun and self._copies.empty()):
                journey = self._copies.get()[2]
                if journey is None:
                    is_open = False
                    continue
                try:
                    source = self._pool.record(journey.slot)
                    begun.append((journey, self._stream.begin(source, journey.record, journey.mark)))
                except Exception as caught:  # handed to whoever waits for the page
                    self._end(journey, caught)
                continue
            journey, wait = begun.popleft()
            failure = None
            try:
                wait()
            except Exception as caught:
                failure = caught
            self._end(journey, failure)

    def _end(self, journey: _Journey, failure: Exception | None) -> None:
        """Count a page as brought, or as failed, and let its slot be used for what waits."""
        with self._lock:
            if failure is None:
                self.bytes_copied += len(journey.record)
                self.bytes_read += stored_bytes(journey.page)
            self._busy.remove(journey.page)
            if not self._busy:
                self.busy_seconds += time.perf_counter() - self._busy_since
            self._begin_readings()
        journey.arrival.end_chunk(failure)


def _find_no_damage() -> None:
    """Find nothing: the disk has looked."""
