"""What an operation asks of its tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from moesaic.errors import UnsupportedError


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> None:
    """Check an argument.

    Args:
        name: as the caller of the operation wrote it.
        shape: None where any size will do.

    Raises:
        UnsupportedError: the shape, dtype or device is another; the text names the argument, what was found and
            what is accepted.
    """
    found = tensor.shape
    # A loop and not `any`: a single token waits for this.
    fits = len(found) == len(shape)
    for size, each in zip(shape, found, strict=False):
        if size is not None and size != each:
            fits = False
    if not fits:
        accepted = ", ".join("any" if size is None else str(size) for size in shape)
        raise UnsupportedError(f"{name} has the shape {tuple(found)}", f"give it the shape ({accepted})")
    if dtype is not None and tensor.dtype != dtype:
        raise UnsupportedError(f"{name} holds {_plain(tensor.dtype)}", f"give it as {_plain(dtype)}")
    if device is not None and tensor.device != device:
        raise UnsupportedError(f"{name} is on {tensor.device}", f"bring it to {device}, where the other tensors are")


def are_items_whole(tensor: Tensor) -> bool:
    """Return whether each item along the first dimension is one piece of memory, apart from the others."""
    length = 1
    for size, stride in zip(reversed(tensor.shape[1:]), reversed(tensor.stride()[1:]), strict=True):
        if size != 1 and stride != length:
            return False
        length *= size
    return len(tensor) < 2 or tensor.stride(0) >= length


def check_no_gradients(what: str, *tensors: Tensor) -> None:
    """Check that nobody waits for gradients of `what`, which has none.

    Raises:
        UnsupportedError: a tensor asks for one.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise UnsupportedError(f"{what} have no gradients", "call them under torch.no_grad()")


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
