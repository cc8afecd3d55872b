"""The tensors of a safetensors folder, by name: their files, shapes and dtypes, read without loading them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from moesaic.checkpoint.folder import INDEX, WEIGHTS, list_shards, refuse_pickles
from moesaic.errors import CheckpointError
from moesaic.memory.page import Extent

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
DTYPES = FLOATS | {"I8": torch.int8, "U8": torch.uint8}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk.

    Attributes:
        extent: where its values are, row-major.
        shape, dtype: as stored; the dtype by safetensors' name.
    """

    extent: Extent
    shape: tuple[int, ...]
    dtype: str


class TensorFolder:
    """All tensors of a folder, sharded or single, or of some files in it.

    Raises:
        CheckpointError: no safetensors, a listed file missing, a truncated file, or a pickle checkpoint.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.stored: dict[str, StoredTensor] = {}
        for file in _weight_files(folder) if names is None else [folder / name for name in names]:
            _check(file)
            self.stored |= dict(_read_header(file))


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


def _check(file: Path) -> None:
    """Have safetensors look at a file: it refuses headers that are damaged or do not fit the file's length."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as failure:
        size = file.stat().st_size if file.exists() else 0
        raise CheckpointError(
            f"cannot read '{file}' ({size} bytes): {failure}",
            "the file is damaged or cut short; fetch it again",
        ) from None


def _read_header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the tensors of a file that has been checked: 8 bytes of length, that many of JSON, then the values."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield (
                name,
                StoredTensor(Extent(file, 8 + length + begin, end - begin), tuple(entry["shape"]), entry["dtype"]),
            )
