"""Folders and files that appear whole or not at all.

Everything is written beside its place under a temporary name, flushed to the disk, and renamed. A process killed at
any moment leaves either the old content or the new, and at most a temporary folder that the next writer removes.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from moesaic.errors import CheckpointError

_TEMPORARY = ".writing-"
_REPLACED = ".replaced-"


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it takes the place of `folder`.

    Raises:
        CheckpointError: writing failed, such as on a full disk; `folder` is as it was.
    """
    folder = folder.absolute()
    temporary = folder.with_name(f"{_TEMPORARY}{folder.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent, folder.name)
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            _flush(path)
        _flush(temporary)
        if folder.exists():
            folder.rename(folder.with_name(f"{_REPLACED}{folder.name}"))
        temporary.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(folder.with_name(f"{_REPLACED}{folder.name}"), ignore_errors=True)
    except (OSError, SafetensorError) as failure:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"cannot write '{folder}': {failure}", "free some space or choose another folder; what was saved before is whole"
        ) from failure
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(parent: Path, name: str = "*") -> None:
    """Remove what a killed writer left in a folder, and finish a replacement that it had begun."""
    for replaced in parent.glob(f"{_REPLACED}{name}"):
        place = parent / replaced.name.removeprefix(_REPLACED)
        if place.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(place)
    for temporary in parent.glob(f"{_TEMPORARY}{name}"):
        shutil.rmtree(temporary)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill at any moment leaves no half of it under its own name."""
    temporary = folder.with_name(f"{_TEMPORARY}{folder.name}")
    folder.rename(temporary)
    shutil.rmtree(temporary)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; tensors that share memory are written apart."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
