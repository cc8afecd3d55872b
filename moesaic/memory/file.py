"""A file that is read at positions, past the page cache where the file system lets."""

import errno
import mmap
import os
from pathlib import Path

import numpy as np

from moesaic.errors import CheckpointError
from moesaic.memory.page import ALIGNMENT


class WeightsFile:
    """A file of weights, which must stay as it was when it was opened; it may be renamed or removed meanwhile.

    Args:
        path: the file.
        cached: whether what is read may stay in the page cache.

    Raises:
        CheckpointError: it cannot be opened.
    """

    def __init__(self, path: Path, cached: bool) -> None:
        self.path = path
        self._cached = cached
        self._is_direct = not cached and hasattr(os, "O_DIRECT")
        try:
            self._descriptor = self._open()
        except OSError as failure:
            raise CheckpointError(f"cannot open '{path}': {failure.strerror}", "put the file back") from None
        self._stamp = self._look()

    @property
    def is_direct(self) -> bool:
        """Tell whether reads go past the page cache; the file system may have refused."""
        return self._is_direct

    def read(self, offset: int, place: np.ndarray, buffer: np.ndarray) -> None:
        """Fill a place, uint8, with the bytes from an offset on; through a buffer if it is not aligned as they are.

        Raises:
            CheckpointError: the file cannot be read there, is cut short, or has changed.
        """
        straight = not self._is_direct or all(each % ALIGNMENT == 0 for each in (offset, place.ctypes.data, len(place)))
        if straight:
            self._fill(offset, place, len(place))
        else:
            place[:] = self.read_through(buffer, offset, len(place))

    def read_through(self, buffer: np.ndarray, offset: int, num_bytes: int) -> np.ndarray:
        """Return bytes from an offset on as a part of an aligned buffer, which is two `ALIGNMENT` longer than they.

        Raises:
            CheckpointError: as `read`.
        """
        before = offset % ALIGNMENT
        length = -(-(before + num_bytes) // ALIGNMENT) * ALIGNMENT
        self._fill(offset - before, buffer[:length], before + num_bytes)
        return buffer[before : before + num_bytes]

    def prefetch(self, offset: int, num_bytes: int) -> None:
        """Have bytes brought into the page cache, without waiting for them."""
        os.posix_fadvise(self._descriptor, offset, num_bytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _open(self) -> int:
        if self._is_direct:
            try:
                return self._open_direct()
            except OSError as failure:
                if failure.errno != errno.EINVAL:
                    raise
                self._is_direct = False
        return os.open(self.path, os.O_RDONLY)

    def _open_direct(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        try:
            # Some file systems open a file for direct reads, and refuse the reads.
            os.preadv(descriptor, [mmap.mmap(-1, ALIGNMENT)], 0)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def _fill(self, offset: int, place: np.ndarray, num_needed: int) -> None:
        """Read from an offset on until the first `num_needed` bytes of a place are there; the rest may stay unread."""
        done = 0
        while done < num_needed:
            count = self._read_once(offset + done, place[done:])
            if count == 0:
                raise CheckpointError(
                    f"'{self.path}' ends at byte {offset + done}, {num_needed - done} more were expected",
                    "the file was cut short; fetch it again",
                )
            done += count
        if self._look() != self._stamp:
            raise CheckpointError(
                f"'{self.path}' has changed since it was opened, found when reading byte {offset}",
                "load the model again",
            )
        if not self._cached and not self._is_direct:
            os.posix_fadvise(self._descriptor, offset, num_needed, os.POSIX_FADV_DONTNEED)

    def _read_once(self, offset: int, place: np.ndarray) -> int:
        try:
            return os.preadv(self._descriptor, [place.data], offset)
        except OSError as failure:
            raise CheckpointError(
                f"cannot read '{self.path}' at byte {offset}: {failure.strerror}",
                "look at the disk; the other files may still be whole",
            ) from None
