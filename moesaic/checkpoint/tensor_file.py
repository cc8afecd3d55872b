"""A safetensors file written tensor by tensor, so that none but the present one is in memory.

The values begin at a multiple of `ALIGNMENT`: the header is padded with spaces, as the format allows. Where every
tensor takes a multiple of it too, each can be read straight past the page cache.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.tensors import DTYPES
from moesaic.flush import flush
from moesaic.memory.page import ALIGNMENT

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_tensor_file(
    path: Path, entries: Mapping[str, tuple[Sequence[int], torch.dtype]], tensors: Iterable[Tensor]
) -> list[int]:
    """Write a file that has its name once all of it is on the disk.

    Args:
        path: the file; replaced.
        entries: by name, in order, shape and dtype of each tensor.
        tensors: they, in that order; one is asked for when those before it have been written.

    Returns:
        zlib.crc32 of the bytes of each.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    beside = path.with_name(f".{path.name}.tmp")
    checksums = []
    try:
        with beside.open("wb") as file:
            file.write(header_of(entries))
            for (name, (shape, dtype)), tensor in zip(entries.items(), tensors, strict=True):
                assert (tuple(tensor.shape), tensor.dtype) == (tuple(shape), dtype), f"'{name}' is as its entry says"
                content = bytes_of(tensor)
                checksums.append(zlib.crc32(content))
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            # What is written is not read soon, and would push out of the page cache what is.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.replace(beside, path)
        flush(path.parent)
    finally:
        beside.unlink(missing_ok=True)
    return checksums


def header_of(
    entries: Mapping[str, tuple[Sequence[int], torch.dtype]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return what a file begins with: 8 bytes of length and that many of JSON.

    Args:
        entries: as for `write_tensor_file`.
        metadata: text by name that the file holds beside; None: none.
    """
    content: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (shape, dtype) in entries.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        content[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(content).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the values of a tensor as bytes, row-major; of a contiguous one of the host the memory is shared."""
    return tensor.cpu().reshape(-1).view(torch.uint8).numpy().data
