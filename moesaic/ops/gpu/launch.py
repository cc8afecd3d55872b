"""Starting kernels, and how wide their tiles are.

Tiles are plain data, never searched for: the search needs a device, and its choice would change sums between runs.
"""

from typing import Any

import torch
import triton
from torch import Tensor

# Sixteen bytes of a narrow dtype for each thread of triton's four warps. Not yet compared with others on a device.
MAX_BLOCK_WIDTH = 1024


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Tensor | int, **constants: Any) -> None:
    """Run a kernel on the device of its first tensor; an empty grid, which CUDA refuses, runs nothing."""
    if 0 not in grid:
        with torch.cuda.device_of(first):
            kernel[grid](first, *arguments, **constants)


def block_width(width: int) -> int:
    """Return the tile of a row: a power of two that covers it, or as much as one program holds."""
    return min(triton.next_power_of_2(max(width, 1)), MAX_BLOCK_WIDTH)


def num_blocks(length: int, block: int) -> int:
    """Return how many tiles cover a length."""
    return triton.cdiv(length, block)
