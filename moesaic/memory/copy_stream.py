"""Copies from host memory to a device, beside what it computes.

On CUDA they have a stream of their own. A copy may overwrite what kernels read: it waits for all that had been given to
the device when it was asked for, and for nothing later. Whoever wants what was copied waits for it on the host, so
kernels that are launched afterwards find it there.

    compute    kernels that read slot 3 | kernels that read other slots ...
    copies                              mark -> page to slot 3 -> end       kernels that read the new page

Elsewhere the device is host memory too, and whoever begins a copy does it.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.units import format_bytes


class CopyStream(Protocol):
    """Copies to one device. One thread marks; another copies."""

    def pin(self, memory: np.ndarray) -> None:
        """Lock memory that will be copied from, so that the device reads it by itself.

        Raises:
            UnsupportedError: the system or the device refuses.
        """
        ...

    def unpin(self, memory: np.ndarray) -> None:
        """Let memory go that was pinned."""
        ...

    def mark(self) -> Any:
        """Return a mark behind all that the calling thread has given to the device."""
        ...

    def begin(self, source: np.ndarray, target: Tensor, after: Any) -> Callable[[], None]:
        """Begin a copy once the device has done what is before a mark; return what waits for the end of the copy."""
        ...


class HostCopyStream:
    """A device that is host memory."""

    def pin(self, memory: np.ndarray) -> None:
        """Do nothing."""

    def unpin(self, memory: np.ndarray) -> None:
        """Do nothing."""

    def mark(self) -> None:
        """Do nothing: what was given to the host has been computed."""

    def begin(self, source: np.ndarray, target: Tensor, after: None) -> Callable[[], None]:
        """Copy."""
        target.copy_(torch.from_numpy(source))
        return _wait_for_nothing


class CudaCopyStream:
    """A stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def pin(self, memory: np.ndarray) -> None:
        """Do what `CopyStream` says. Not by torch's own pinned memory, which takes the next power of two."""
        code = int(torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
        if code != 0:
            raise UnsupportedError(
                f"cannot pin {format_bytes(memory.nbytes)} of host memory for {self._device}: CUDA error {code}",
                "give a smaller --memory, or let the process lock more: ulimit -l",
            )

    def unpin(self, memory: np.ndarray) -> None:
        """Do what `CopyStream` says."""
        torch.cuda.cudart().cudaHostUnregister(memory.ctypes.data)

    def mark(self) -> torch.cuda.Event:
        """Do what `CopyStream` says."""
        return torch.cuda.current_stream(self._device).record_event()

    def begin(self, source: np.ndarray, target: Tensor, after: torch.cuda.Event) -> Callable[[], None]:
        """Do what `CopyStream` says."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            target.copy_(torch.from_numpy(source), non_blocking=True)
            # Whoever waits sleeps: a core that spins is one that does not compute.
            return self._stream.record_event(torch.cuda.Event(blocking=True)).synchronize


def open_copy_stream(device: torch.device) -> CopyStream:
    """Return a stream of copies to a device."""
    return CudaCopyStream(device) if device.type == "cuda" else HostCopyStream()


def _wait_for_nothing() -> None:
    pass
