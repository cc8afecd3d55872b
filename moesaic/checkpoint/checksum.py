"""Checksums as fast as memory, of blocks, so that whoever reads a part of a file compares that part.

Each block of 64 KiB is summed as 8192 words of 64 bits, times 1, 3, 5, ..., modulo 2**64. An odd factor loses nothing:
a change within one word always shows. The sums lie beside the file, 8 bytes a block, and the checksum of the file is
the zlib.crc32 of its sums.
"""

import zlib

import numpy as np

BLOCK_BYTES = 2**16
_FACTORS = np.arange(1, BLOCK_BYTES // 4, 2, dtype="<u8")


class Checksum:
    """Of bytes that come in any portions.

    Attributes:
        num_bytes: so far.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._sums: list[np.ndarray] = []
        self._rest = b""

    def add(self, content: memoryview) -> None:
        """Take further bytes."""
        self.num_bytes += len(content)
        if self._rest:
            missing = BLOCK_BYTES - len(self._rest)
            self._rest += content[:missing]
            content = content[missing:]
            if len(self._rest) < BLOCK_BYTES:
                return
            self._sums.append(sum_blocks(memoryview(self._rest)))
        whole = len(content) // BLOCK_BYTES * BLOCK_BYTES
        self._sums.append(sum_blocks(content[:whole]))
        self._rest = bytes(content[whole:])

    @property
    def sums(self) -> bytes:
        """Return the sum of each block, 8 bytes, little-endian; the last one may be short."""
        return b"".join(each.tobytes() for each in (*self._sums, sum_blocks(memoryview(self._rest))))

    @property
    def value(self) -> int:
        """Return the checksum, 32 bits."""
        return zlib.crc32(self.sums)


def sum_blocks(content: memoryview) -> np.ndarray:
    """Return the sum of each block; what is missing of the last one counts as zeros."""
    if len(content) % BLOCK_BYTES:
        whole = len(content) // BLOCK_BYTES * BLOCK_BYTES
        rest = memoryview(bytes(content[whole:]).ljust(BLOCK_BYTES, b"\0"))
        return np.concatenate([sum_blocks(content[:whole]), sum_blocks(rest)])
    words = np.frombuffer(content, "<u8").reshape(-1, len(_FACTORS))
    sums: np.ndarray = np.einsum("bw,w->b", words, _FACTORS)
    return sums
