"""A file of a checkpoint, compared with its sums while it is read."""

import zlib
from pathlib import Path

import numpy as np

from moesaic.checkpoint.checksum import BLOCK_BYTES, sum_blocks
from moesaic.checkpoint.manifest import damage_error
from moesaic.checkpoint.shard import Digest, sums_of
from moesaic.memory.file import WeightsFile

# So much is read and then summed, while it is in the processor's cache.
_CHUNK_BYTES = 8 * BLOCK_BYTES
_NOTHING = np.empty(0, np.uint8)


class CheckedFile:
    """Reads any bytes of a file, and with them the rest of the blocks that they are in.

    Args:
        path: the checkpoint.
        name: of the file in it.
        digest: what it was written with.

    Raises:
        CheckpointError: it cannot be opened, or its sums are damaged.
    """

    def __init__(self, path: Path, name: str, digest: Digest) -> None:
        self._path, self._name, self._num_bytes = path, name, digest.num_bytes
        try:
            content = sums_of(path / name).read_bytes()
        except OSError as failure:
            raise damage_error(path, f"the sums of '{name}' cannot be read: {failure.strerror}") from None
        if zlib.crc32(content) != digest.checksum or len(content) != -(-digest.num_bytes // BLOCK_BYTES) * 8:
            raise damage_error(path, f"the sums of '{name}' are not those that were written")
        self._sums = np.frombuffer(content, "<u8")
        self._file = WeightsFile(path / name, cached=True)

    def read(self, offset: int, place: np.ndarray) -> None:
        """Fill a place, uint8, with the bytes from an offset on.

        Raises:
            CheckpointError: they cannot be read, or a block of them is damaged.
        """
        end = offset + len(place)
        self._file.prefetch(offset, len(place))
        # Blocks that are wanted whole are read to their place, the others, at most two, beside it.
        first, last = -(-offset // BLOCK_BYTES) * BLOCK_BYTES, end // BLOCK_BYTES * BLOCK_BYTES
        for begin in range(first, last, _CHUNK_BYTES):
            self._read_blocks(begin, place[begin - offset : min(begin + _CHUNK_BYTES, last) - offset])
        for block in sorted({offset // BLOCK_BYTES * BLOCK_BYTES, last} - set(range(first, last, BLOCK_BYTES))):
            begin, stop = max(block, offset), min(block + BLOCK_BYTES, end)
            if begin < stop:
                beside = np.empty(min(BLOCK_BYTES, self._num_bytes - block), np.uint8)
                self._read_blocks(block, beside)
                place[begin - offset : stop - offset] = beside[begin - block : stop - block]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_blocks(self, begin: int, place: np.ndarray) -> None:
        self._file.read(begin, place, _NOTHING)
        sums = sum_blocks(place.data)
        index = begin // BLOCK_BYTES
        wrong = np.flatnonzero(sums != self._sums[index : index + len(sums)])
        if len(wrong):
            at = begin + int(wrong[0]) * BLOCK_BYTES
            raise damage_error(
                self._path, f"'{self._name}' has other bytes within {BLOCK_BYTES} from byte {at} on than were written"
            )
