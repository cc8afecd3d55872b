"""Folders and files that appear whole or not at all.

Everything is written beside its place under a temporary name, flushed to the disk, and renamed; a folder that
stands in the place swaps names with the new one. A process killed at any moment leaves either the old content or
the new, and at most a temporary folder that the next writer removes. Where the file system cannot swap names, the
old folder is renamed first: a process killed between the two renames leaves it as '.replaced-NAME', and the next
writer gives it its name back.
"""

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from moesaic.checkpoint.exchange import exchange_folders
from moesaic.errors import CheckpointError
from moesaic.flush import flush, flush_tree

_TEMPORARY = ".writing-"
_REPLACED = ".replaced-"


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill; at the end it takes the place of `folder`.

    Raises:
        CheckpointError: writing failed, such as on a full disk; `folder` is as it was.
    """
    folder = folder.absolute()
    temporary = temporary_folder(folder)
    replaced = folder.with_name(f"{_REPLACED}{folder.name}")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"cannot write '{folder}': it is a file", "give the name of a folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent, folder.name)
        temporary.mkdir()
        yield temporary
        flush_tree(temporary)
        if not (folder.exists() and exchange_folders(temporary, folder)):
            if folder.exists():
                folder.rename(replaced)
            temporary.rename(folder)
        flush(folder.parent)
        # One of them holds the old content, after a swap or after two renames.
        for old in (temporary, replaced):
            shutil.rmtree(old, ignore_errors=True)
    except BaseException as failure:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        if not isinstance(failure, OSError | SafetensorError):
            raise
        raise write_error(folder, failure) from failure


def temporary_folder(folder: Path) -> Path:
    """Return where `atomic_folder` lets a folder be filled."""
    folder = folder.absolute()
    return folder.with_name(f"{_TEMPORARY}{folder.name}")


def write_error(folder: Path, failure: Exception) -> CheckpointError:
    """Say that a folder could not be written."""
    return CheckpointError(
        f"cannot write '{folder}': {failure}",
        "free some space or choose another folder; what was saved before is whole",
    )


def remove_leftovers(parent: Path, name: str | None = None) -> None:
    """Remove what a killed writer left in a folder, and undo a replacement that it had begun.

    Args:
        parent: the folder that holds what was written.
        name: of the one thing written; None: all.
    """
    pattern = "*" if name is None else glob.escape(name)
    for replaced in parent.glob(f"{_REPLACED}{pattern}"):
        place = parent / replaced.name.removeprefix(_REPLACED)
        if place.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(place)
    for temporary in parent.glob(f"{_TEMPORARY}{pattern}"):
        shutil.rmtree(temporary)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill at any moment leaves no half of it under its own name."""
    remove_leftovers(folder.parent, folder.name)
    temporary = temporary_folder(folder)
    folder.rename(temporary)
    shutil.rmtree(temporary)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file of tensors that do not overlap in memory; each is written contiguously."""
    # save_file makes a file that nobody else may read; a model is shared as any other file is.
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    path.chmod(mode)
