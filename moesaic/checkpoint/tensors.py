"""The tensors of a safetensors folder, by name: their files, shapes and dtypes, read without loading them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moesaic.checkpoint.folder import INDEX, WEIGHTS, list_shards, refuse_pickles
from moesaic.errors import CheckpointError

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class TensorFolder:
    """All tensors of a folder, sharded or single.

    Raises:
        CheckpointError: no safetensors, a listed file missing, a truncated file, or a pickle checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[str, StoredTensor] = {}
        for file in _weight_files(folder):
            with _open(file) as handle:
                for name in handle.keys():  # noqa: SIM118 - safe_open is no mapping
                    part = handle.get_slice(name)
                    self.stored[name] = StoredTensor(file, tuple(part.get_shape()), part.get_dtype())

    def reader(self) -> "TensorReader":
        """Return a reader that keeps files open between tensors; use it as a context manager."""
        return TensorReader(self)


class TensorReader:
    """Reads tensors one at a time."""

    def __init__(self, source: TensorFolder) -> None:
        self._source = source
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    def read(self, name: str) -> Tensor:
        """Return one tensor in its stored dtype."""
        file = self._source.stored[name].file
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            return self._open[file].get_tensor(name)
        except (SafetensorError, OSError) as failure:
            raise CheckpointError(f"cannot read '{name}' from '{file}': {failure}", "fetch the file again") from None


def _weight_files(folder: Path) -> list[Path]:
    # As transformers does: beside the whole model, an index is left over from an earlier one.
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        files = [folder / name for name in list_shards(folder)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"'{folder / INDEX}' lists {len(files)} files, {len(missing)} of them missing: "
                f"{', '.join(missing[:3])}",
                "fetch the missing files",
            )
        return files
    loose = sorted(folder.glob("*.safetensors"))
    if not loose:
        refuse_pickles(folder, [path.name for path in folder.iterdir()])
        raise CheckpointError(f"no safetensors files in '{folder}'", f"expected {WEIGHTS} or {INDEX}")
    return loose


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as failure:
        size = file.stat().st_size if file.exists() else 0
        raise CheckpointError(
            f"cannot read '{file}' ({size} bytes): {failure}",
            "the file is damaged or cut short; fetch it again",
        ) from None
