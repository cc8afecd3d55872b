"""The tensors of a safetensors folder, by name: their files, shapes and dtypes, read without loading them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from moesaic.checkpoint.folder import INDEX, WEIGHTS, list_shards, refuse_pickles
from moesaic.errors import CheckpointError
from moesaic.memory.page import Extent

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
DTYPES = FLOATS | {"I8": torch.int8, "U8": torch.uint8}


# Under this key of a file's metadata torch's distributed checkpoint says which box of a tensor the file holds; the
# shape of the whole tensor is an addition of ours.
SHARDING, OFFSETS, SHAPE = "DCP_SHARDING_INFO", "saved_offsets", "shape"


@dataclass(frozen=True)
class Block:
    """A box of a tensor, whose values lie one after another, row-major.

    Attributes:
        extent: where they are.
        offsets: index of the first one.
        shape: of the box.
    """

    extent: Extent
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk.

    Attributes:
        blocks: boxes that make it up, in one file or several.
        shape, dtype: of the whole; the dtype by safetensors' name.
    """

    blocks: tuple[Block, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all values."""
        return sum(block.extent.num_bytes for block in self.blocks)

    @property
    def extent(self) -> Extent:
        """Return where the values are, of a tensor that lies in one piece."""
        assert len(self.blocks) == 1, "the tensor lies in one piece"
        return self.blocks[0].extent

    def runs(self, begin: int, end: int) -> Iterator[tuple[int, Extent]]:
        """Yield where bytes begin..end of the whole tensor, row-major, are; each run with its place from `begin` on.

        A box that is cut along another dimension than the first is as many runs as it has rows before that dimension.
        """
        itemsize = DTYPES[self.dtype].itemsize
        for block in self.blocks:
            for number, (start, length) in enumerate(_contiguous(block, self.shape, itemsize)):
                first, last = max(begin, start), min(end, start + length)
                if first < last:
                    offset = block.extent.offset + number * length + first - start
                    yield first - begin, Extent(block.extent.file, offset, last - first)


def _contiguous(block: Block, shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
    """Yield first byte and length in the whole tensor of each run of a box, in the order of its values."""
    cut = max((dim for dim, size in enumerate(shape) if block.shape[dim] != size), default=0)
    strides = [math.prod(shape[dim + 1 :]) * itemsize for dim in range(len(shape))]
    length = math.prod(block.shape[cut:]) * itemsize
    first = sum(offset * stride for offset, stride in zip(block.offsets[cut:], strides[cut:], strict=True))
    rows = (range(offset, offset + size) for offset, size in zip(block.offsets[:cut], block.shape[:cut], strict=True))
    for index in product(*rows):
        yield first + sum(each * stride for each, stride in zip(index, strides, strict=False)), length


class TensorFolder:
    """All tensors of a folder, sharded or single, or of some files in it.

    Raises:
        CheckpointError: no safetensors, a listed file missing, a truncated file, a pickle checkpoint, or boxes that do
            not make up a tensor.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.stored: dict[str, StoredTensor] = {}
        boxes: dict[str, list[StoredTensor]] = {}
        for file in _weight_files(folder) if names is None else [folder / name for name in names]:
            _check(file)
            for name, tensor, is_box in _read_header(file):
                if is_box:
                    boxes.setdefault(name, []).append(tensor)
                else:
                    self.stored[name] = tensor
        self.stored |= {name: _put_together(name, parts) for name, parts in boxes.items()}

    @property
    def files(self) -> set[Path]:
        """Return the files that hold any of them."""
        return {block.extent.file for tensor in self.stored.values() for block in tensor.blocks}


def _put_together(name: str, parts: list[StoredTensor]) -> StoredTensor:
    first, blocks = parts[0], [block for part in parts for block in part.blocks]
    hint = "files of different checkpoints were mixed, or one is missing; put them back as they were written"
    for part in parts:
        if (part.shape, part.dtype) != (first.shape, first.dtype):
            raise CheckpointError(
                f"'{name}' is {first.dtype} {list(first.shape)} in '{first.blocks[0].extent.file}' and {part.dtype} "
                f"{list(part.shape)} in '{part.blocks[0].extent.file}'",
                hint,
            )
    for block in blocks:
        if any(at + size > whole for at, size, whole in zip(block.offsets, block.shape, first.shape, strict=True)):
            raise CheckpointError(
                f"'{block.extent.file}' holds a part of '{name}' that begins at {list(block.offsets)}, outside of "
                f"{list(first.shape)}",
                hint,
            )
    blocks.sort(key=lambda block: block.offsets)
    for index, one in enumerate(blocks):
        end = _end(one)
        for other in blocks[index + 1 :]:
            if other.offsets[:1] >= end:  # as do all behind it
                break
            if _overlap(one, other):
                raise CheckpointError(
                    f"'{one.extent.file}' and '{other.extent.file}' hold the same part of '{name}'", hint
                )
    found, expected = sum(math.prod(block.shape) for block in blocks), math.prod(first.shape)
    if found != expected:
        files = ", ".join(sorted({block.extent.file.name for block in blocks})[:3])
        raise CheckpointError(
            f"of the {expected} values of '{name}' {found} are in '{blocks[0].extent.file.parent}' ({files})", hint
        )
    return StoredTensor(tuple(blocks), first.shape, first.dtype)


def _end(block: Block) -> tuple[int, ...]:
    """Return where the first dimension of a box ends; a scalar ends behind itself."""
    return (block.offsets[0] + block.shape[0],) if block.shape else (1,)


def _overlap(one: Block, other: Block) -> bool:
    sides = zip(one.offsets, one.shape, other.offsets, other.shape, strict=True)
    return all(mine < its + its_size and its < mine + size for mine, size, its, its_size in sides)


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


def _read_header(file: Path) -> Iterator[tuple[str, StoredTensor, bool]]:
    """Yield the tensors of a file that has been checked: 8 bytes of length, that many of JSON, then the values.

    With each comes whether it is a box of a tensor that other files may have more of.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    sharding = _read_sharding(file, header.pop("__metadata__", {}))
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        box = sharding.get(name)
        offsets, whole = ((0,) * len(shape), shape) if box is None else (tuple(box[OFFSETS]), tuple(box[SHAPE]))
        if not len(offsets) == len(whole) == len(shape):
            raise _bad_sharding(file, f"'{name}' has {len(shape)} dimensions")
        block = Block(Extent(file, 8 + length + begin, end - begin), offsets, shape)
        yield name, StoredTensor((block,), whole, entry["dtype"]), box is not None


def _read_sharding(file: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, list[int]]]:
    """Return offsets of the boxes of a file, and shapes of what they are of, by tensor; of a usual file nothing."""
    if SHARDING not in metadata:
        return {}
    try:
        content = json.loads(metadata[SHARDING])
        return {
            name: {key: [int(each) for each in box[key]] for key in (OFFSETS, SHAPE)} for name, box in content.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as failure:
        raise _bad_sharding(file, f"{type(failure).__name__}: {failure}") from None


def _bad_sharding(file: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"'{file}' does not tell which parts of its tensors it holds: {found}",
        "give a checkpoint of `moesaic train`, or a folder in Hugging Face's layout",
    )
