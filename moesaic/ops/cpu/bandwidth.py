"""How fast this machine reads its memory: what a few tokens, whose cost is reading weights, are measured against."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from moesaic.ops.cpu.library import load_library

# Beyond the last-level cache, of which a shared machine does not tell how much is ours.
BUFFER_BYTES = 2**30
# All read every byte once, with all threads; which is the fastest depends on the machine.
_READERS: dict[str, Callable[[Tensor], object]] = {
    "sum of float32": lambda buffer: buffer.view(torch.float32).sum(),
    "sum of int64": lambda buffer: buffer.view(torch.int64).sum(),
    "row sums of float32": lambda buffer: buffer.view(torch.float32).view(64, -1).sum(1),
    "largest int32": lambda buffer: buffer.view(torch.int32).amax(),
}


def read_bandwidth(num_bytes: int = BUFFER_BYTES, repeats: int = 5) -> float:
    """Return bytes a second: the median of the fastest of several ways to read a buffer.

    Args:
        num_bytes: size of the buffer, a multiple of 512.
        repeats: readings in each way, which take turns, after one that does not count.
    """
    # Filled, because pages that were never written are all one page of zeros.
    buffer = torch.ones(num_bytes, dtype=torch.uint8)
    readers: list[Callable[[], object]] = [partial(read, buffer) for read in _READERS.values()]
    library = load_library()
    if library is not None:
        readers.append(partial(library.moesaic_read, buffer.data_ptr(), num_bytes, torch.get_num_threads()))
    rounds = [[_time(read) for read in readers] for _ in range(repeats + 1)]
    return num_bytes / min(statistics.median(times) for times in zip(*rounds[1:], strict=True))


def _time(read: Callable[[], object]) -> float:
    began = time.perf_counter()
    read()
    return time.perf_counter() - began
