"""How much memory a model may take, and what it holds as long as it is there."""

import torch

from moesaic.hw.device import free_device_bytes
from moesaic.hw.memory import available_bytes, held_bytes, limit_bytes
from moesaic.memory.disk import DISK_BUFFERS_BYTES

# What torch and the system's allocator come to hold beyond what is written down: threads' stacks and arenas, compiled
# products, tensors of a few tokens.
_GROWTH_BYTES = 128 * 2**20
# Of the memory that is free, when nobody says how much may be taken.
_SHARE = 0.8
# What CUDA comes to hold beyond what is written down: kernels, workspaces of matrix products.
_CUDA_BYTES = 256 * 2**20
DENSE = "dense core"


def choose_budget(asked: int | None, num_bytes: int) -> int | None:
    """Return what is asked for, or as much of it as the process may ever hold.

    Where nobody asks: most of what is free, if weights of so many bytes take more; else None, no limit.
    """
    if asked is not None:
        return min(asked, limit_bytes())
    most = int(_SHARE * available_bytes())
    return most if num_bytes > most else None


def choose_device_budget(device: torch.device, asked: int | None) -> int | None:
    """Return what is asked for, or as much of it as is free on a device; None where it has no memory of its own.

    Where nobody asks: most of what is free there.
    """
    if device.type != "cuda":
        return asked
    free = free_device_bytes(device)
    return int(_SHARE * free) if asked is None else min(asked, free - _CUDA_BYTES)


def list_fixed(dense_bytes: int) -> dict[str, int]:
    """Return the bytes that are held as long as a model is, whatever the budget, by purpose."""
    return {
        "process": held_bytes() + _GROWTH_BYTES,
        DENSE: dense_bytes,
        "buffers of the disk": DISK_BUFFERS_BYTES,
    }
