"""Devices that compute, and their memory."""

import torch

from moesaic.errors import ConfigError, UnsupportedError

_ACCEPTED = "accepted: cpu, cuda, cuda:0, cuda:1 ..."


def find_device(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ConfigError: it is no name of a device, or of one that is not there.
        UnsupportedError: it is one of CUDA, and torch finds none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:  # torch's own for a name that it does not know
        raise ConfigError(f"unknown device '{name}'", _ACCEPTED) from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ConfigError(f"device '{name}' is not supported", _ACCEPTED)
    if not torch.cuda.is_available():
        raise UnsupportedError(
            f"device '{name}' was asked for, and torch finds no CUDA device",
            "leave out the device, or install the driver and a torch built for CUDA; see moesaic doctor",
        )
    # Bare 'cuda' is whichever is current; from here on it is one of them.
    index = torch.cuda.current_device() if device.index is None else device.index
    count = torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f"there is no device '{name}'", f"accepted: cuda:0 to cuda:{count - 1}")
    return torch.device("cuda", index)


def free_device_bytes(device: torch.device) -> int:
    """Return the bytes of a CUDA device that nobody holds."""
    return torch.cuda.mem_get_info(device)[0]
