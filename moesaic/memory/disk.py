"""The slowest tier: pages read from files by a few threads.

Reading through a mapped file is several times slower, a fault for every few pages of memory, and what it leaves in the
page cache counts as memory of whoever caused it.
"""

import mmap
import queue
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from moesaic.errors import CheckpointError
from moesaic.memory.file import WeightsFile
from moesaic.memory.page import ALIGNMENT, Extent, Page, Piece

# A read of so many bytes costs the disk hardly more a byte than a longer one.
_CHUNK_BYTES = 2**21
# Of a thread: a chunk, wherever it begins and ends in the file.
_BUFFER_BYTES = _CHUNK_BYTES + 2 * ALIGNMENT
_NUM_THREADS = 4
# Of all threads of a disk, where nobody says how many.
DISK_BUFFERS_BYTES = _NUM_THREADS * _BUFFER_BYTES
# torch copies so many values without waking other threads, which are busy computing.
_SERIAL_VALUES = 2**15


class Reading:
    """A page on its way to a record.

    Attributes:
        failure: why it will not arrive; None: nothing is known against it.
    """

    def __init__(
        self, num_chunks: int, find_damage: Callable[[], Exception | None], on_end: Callable[[], None] | None
    ) -> None:
        self.failure: Exception | None = None
        self._left = num_chunks
        self._find_damage = find_damage
        self._on_end = on_end
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def wait(self) -> None:
        """Wait until all is there.

        Raises:
            CheckpointError: a file cannot be read, is cut short, has changed since it was first read, or is damaged.
        """
        self._ended.wait()
        if self.failure is not None:
            raise self.failure

    def end_chunk(self, failure: Exception | None) -> None:
        """Count a chunk as read, or as failed; after the last one, look for damage."""
        with self._lock:
            self.failure = self.failure or failure
            self._left -= 1
            if self._left > 0:
                return
        self.failure = self.failure or self._find_damage()
        self._ended.set()
        if self._on_end is not None:
            self._on_end()


@dataclass(frozen=True)
class _Chunk:
    """Bytes begin..end of a piece."""

    reading: Reading
    piece: Piece
    record: np.ndarray
    begin: int
    end: int


class Disk:
    """Reads pages into records.

    The checksum of a piece is compared when it is first read, and not again: every read looks whether the file changed.

    Args:
        cached: whether what is read may stay in the page cache.
        num_threads: that read.

    Attributes:
        bytes_read: of files, so far.
        busy_seconds: during which something was being read.
    """

    def __init__(self, cached: bool = False, num_threads: int = _NUM_THREADS) -> None:
        self.bytes_read = 0
        self.busy_seconds = 0.0
        self._cached = cached
        self._files: dict[Path, WeightsFile] = {}
        self._known_whole: set[Extent] = set()
        # (rank, serial, chunk): what is urgent first, then in order; None ends a thread.
        self._chunks: queue.PriorityQueue[tuple[int, int, _Chunk | None]] = queue.PriorityQueue()
        self._serial = 0
        self._num_open = 0
        self._busy_since = 0.0
        self._lock = threading.Lock()
        names = [f"moesaic-disk-{index}" for index in range(num_threads)]
        self._threads = [threading.Thread(target=self._serve, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def read(
        self, page: Page, record: np.ndarray, on_end: Callable[[], None] | None = None, urgent: bool = True
    ) -> Reading:
        """Begin to fill a record.

        Args:
            page: what to read.
            record: uint8, as long as the page's layout says. Not to be touched before the end.
            on_end: called by a thread of the disk when all is there, or never will be.
            urgent: before all that is not.
        """
        runs = [
            (piece, begin, min(begin + _CHUNK_BYTES, piece.extent.num_bytes))
            for piece in page
            for begin in range(0, piece.extent.num_bytes, _CHUNK_BYTES)
        ]
        assert self._threads, "a closed disk reads no more"
        reading = Reading(max(1, len(runs)), partial(self._find_damage, page, record), on_end)
        with self._lock:
            if self._num_open == 0 and runs:
                self._busy_since = time.perf_counter()
            self._num_open += len(runs)
        for piece, begin, end in runs:
            self._serial += 1
            self._chunks.put((0 if urgent else 1, self._serial, _Chunk(reading, piece, record, begin, end)))
        if not runs:
            reading.end_chunk(None)
        return reading

    def close(self) -> None:
        """End the threads, after what they still have to read, and close the files."""
        for index, _ in enumerate(self._threads):
            self._chunks.put((2, index, None))
        for thread in self._threads:
            thread.join()
        self._threads = []
        for file in self._files.values():
            file.close()
        self._files = {}

    def _serve(self) -> None:
        buffer = np.frombuffer(mmap.mmap(-1, _BUFFER_BYTES), np.uint8)
        while (chunk := self._chunks.get()[2]) is not None:
            failure = chunk.reading.failure
            if failure is None:
                try:
                    self._fill(chunk, buffer)
                except Exception as caught:  # handed to whoever waits for the page
                    failure = caught
            self._count(0 if failure else chunk.end - chunk.begin)
            chunk.reading.end_chunk(failure)

    def _fill(self, chunk: _Chunk, buffer: np.ndarray) -> None:
        piece = chunk.piece
        file = self._open(piece.extent.file)
        offset, num_bytes = piece.extent.offset + chunk.begin, chunk.end - chunk.begin
        start = piece.start + chunk.begin // piece.stored.itemsize * piece.kept.itemsize
        place = chunk.record[start : start + num_bytes // piece.stored.itemsize * piece.kept.itemsize]
        if piece.stored == piece.kept:
            file.read(offset, place, buffer)
            return
        values = torch.from_numpy(file.read_through(buffer, offset, num_bytes)).view(piece.stored)
        kept = torch.from_numpy(place).view(piece.kept)
        for begin in range(0, len(values), _SERIAL_VALUES):
            kept[begin : begin + _SERIAL_VALUES] = values[begin : begin + _SERIAL_VALUES]

    def _find_damage(self, page: Page, record: np.ndarray) -> CheckpointError | None:
        """Compare the checksums of pieces that have just been read for the first time."""
        for piece in page:
            extent = piece.extent
            if piece.checksum is None or extent in self._known_whole:
                continue
            found = zlib.crc32(record[piece.start : piece.start + extent.num_bytes].data)
            if found != piece.checksum:
                return CheckpointError(
                    f"'{extent.file}' is damaged: {extent.num_bytes} bytes from byte {extent.offset} on have checksum "
                    f"{found:08x}, {piece.checksum:08x} was written",
                    "fetch the file again, or convert the model again",
                )
            self._known_whole.add(extent)
        return None

    def _open(self, path: Path) -> WeightsFile:
        with self._lock:
            if path not in self._files:
                self._files[path] = WeightsFile(path, self._cached)
            return self._files[path]

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.bytes_read += num_bytes
            self._num_open -= 1
            if self._num_open == 0:
                self.busy_seconds += time.perf_counter() - self._busy_since
