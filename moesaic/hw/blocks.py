"""Large blocks of memory outside the heap, which are used again.

A heap that keeps what is freed (`hw/allocator.py`) cuts other tensors from the place that a large one has left; when
it comes again, a step later, it needs a new place, and the process grows by holes: a mixture's step that holds 80 MiB
came to hold 180. Here a block goes to tensors of its own size only, and is not taken from the kernel anew, page by
page, for each of them.
"""

import contextlib
import ctypes
import math
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

# Smaller tensors are the heap's affair.
_SMALLEST_BYTES = 2**20
# A block that is free while so many times as many tensors are asked for as there are blocks is not needed any more.
_PATIENCE = 8
# Memory that is shared with nobody, where a system tells the two apart.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}


class _Block:
    def __init__(self, num_bytes: int) -> None:
        self.memory = _map(num_bytes)
        self.num_bytes = len(self.memory)
        self.view_type = ctypes.c_char * self.num_bytes
        self.freed_at = 0


class Blocks:
    """Memory for tensors, of which those that have gone leave theirs to those that come; threads may ask at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A tensor may go while a block is taken, in the same thread too: it only leaves its block here.
        self._returned: deque[_Block] = deque()
        self._free: list[_Block] = []
        self._num_blocks = 0
        self._num_requests = 0

    @property
    def held_bytes(self) -> int:
        """Return the length of the blocks that no tensor uses."""
        with self._lock:
            self._collect()
            return sum(block.num_bytes for block in self._free)

    def new_empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor on the CPU with any values; a small one comes from the heap.

        Raises:
            MemoryError: there is no memory.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < _SMALLEST_BYTES:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")
        block = self._take(num_bytes)
        # Lives as long as the tensor's memory does.
        view = block.view_type.from_buffer(block.memory)
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.frombuffer(view, dtype=dtype, count=math.prod(shape)).view(tuple(shape))

    def _take(self, num_bytes: int) -> _Block:
        with self._lock:
            self._num_requests += 1
            self._collect()
            length = _round_up(num_bytes)
            for index, block in enumerate(self._free):
                if block.num_bytes == length:
                    return self._free.pop(index)
            self._let_go_of_old_ones()
            block = _Block(length)
            self._num_blocks += 1
            return block

    def _give_back(self, block: _Block) -> None:
        block.freed_at = self._num_requests
        self._returned.append(block)

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())

    def _let_go_of_old_ones(self) -> None:
        oldest = self._num_requests - _PATIENCE * self._num_blocks
        kept = [block for block in self._free if block.freed_at >= oldest]
        self._num_blocks -= len(self._free) - len(kept)
        self._free = kept


def _round_up(num_bytes: int) -> int:
    """Round to an eighth of a power of two: rows that grow a little from step to step find their block large enough."""
    grain = max(mmap.PAGESIZE, 2 ** (num_bytes.bit_length() - 4))
    return -(-num_bytes // grain) * grain


def _map(num_bytes: int) -> mmap.mmap:
    try:
        memory = mmap.mmap(-1, num_bytes, **_PRIVATE)
    except OSError as failure:
        raise MemoryError(f"no memory for a tensor of {num_bytes} bytes") from failure
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Fewer pages to take the first time. A kernel without such pages refuses, and small ones do as well.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


BLOCKS = Blocks()


def new_rows(like: Tensor, num_rows: int) -> Tensor:
    """Return room for rows that are as those of another tensor: a block where that has memory of the CPU."""
    shape = num_rows, *like.shape[1:]
    has_memory = type(like) is Tensor and like.device.type == "cpu"  # others are imagined while a model is traced
    return BLOCKS.new_empty(shape, like.dtype) if has_memory else like.new_empty(shape)
