"""Reading a checkpoint into tensors that are there: each rank reads what it has of them, whoever wrote it.

Which boxes of files go where is planned by torch's distributed checkpoint.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.manifest import check_content, list_files
from moesaic.checkpoint.shard import Digest
from moesaic.checkpoint.tensors import DTYPES, Block, StoredTensor, TensorFolder
from moesaic.errors import CheckpointError
from moesaic.memory.disk import Disk, Reading
from moesaic.memory.page import Extent, Piece

# Of rows that are read whole, where less than the whole of each is wanted.
_SLAB_BYTES = 2**23


def restore_tensors(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], agreement: Agreement) -> None:
    """Fill tensors from a checkpoint whose files are checked first, each by one rank; all ranks must call.

    Args:
        path: the checkpoint.
        tensors: by name, by folder; whole or in the parts of ranks.
        agreement: the ranks.

    Raises:
        CheckpointError: a file is missing, damaged, or more than was written; or the tensors are not those that were.
    """

    def check() -> None:
        files = list_files(path)
        check_content(path, files, _deal_out(files, agreement.size)[agreement.rank])

    agreement.do(check)
    agreement.do(lambda: _read_all(path, tensors))


def _deal_out(files: Mapping[str, Digest], num_ranks: int) -> list[list[str]]:
    """Share out files so that each rank reads about as much."""
    shares: list[list[str]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for name in sorted(files, key=lambda each: (-files[each].num_bytes, each)):
        rank = loads.index(min(loads))
        shares[rank].append(name)
        loads[rank] += files[name].num_bytes
    return shares


def _read_all(path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    names = list_files(path)
    disk = Disk(cached=True)
    try:
        for folder, wanted in tensors.items():
            files = [name for name in names if name.startswith(f"{folder}/")]
            if not files:
                raise CheckpointError(f"checkpoint '{path}' lacks '{folder}'", "resume from another one")
            stored = TensorFolder(path, files).stored
            _check_fit(path, folder, stored, wanted)
            _read(stored, wanted, disk)
    finally:
        disk.close()


def _check_fit(path: Path, folder: str, stored: Mapping[str, StoredTensor], wanted: Mapping[str, Tensor]) -> None:
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in wanted.items()}
    found = {name: (tensor.shape, DTYPES[tensor.dtype]) for name, tensor in stored.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"checkpoint '{path}' does not fit the run: its {folder} has '{wrong[0]}' {_tell(found.get(wrong[0]))}, "
            f"expected {_tell(expected.get(wrong[0]))}{more}",
            "resume from another one, with the recipe that the run began with",
        )


def _tell(entry: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "not at all" if entry is None else f"of {str(entry[1]).removeprefix('torch.')} {list(entry[0])}"


def _read(stored: Mapping[str, StoredTensor], wanted: Mapping[str, Tensor], disk: Disk) -> None:
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(wanted), _metadata(stored))
    blocks = {(name, block.offsets): block for name, tensor in stored.items() for block in tensor.blocks}
    readings: list[Reading] = []
    for item in planner.create_local_plan().items:
        index = item.storage_index
        assert index.offset is not None, "a box begins somewhere"
        target = planner.resolve_tensor(item).detach()
        readings += _read_box(blocks[index.fqn, tuple(index.offset)], item, target, disk)
    for reading in readings:
        reading.wait()


def _metadata(stored: Mapping[str, StoredTensor]) -> Metadata:
    return Metadata(
        {
            name: TensorStorageMetadata(
                TensorProperties(dtype=DTYPES[tensor.dtype]),
                torch.Size(tensor.shape),
                [ChunkStorageMetadata(torch.Size(block.offsets), torch.Size(block.shape)) for block in tensor.blocks],
            )
            for name, tensor in stored.items()
        }
    )


def _read_box(block: Block, item: ReadItem, target: Tensor, disk: Disk) -> Iterator[Reading]:
    """Begin to fill a target with a part of a block: rows of it, whole or each in part."""
    if not block.shape:  # a scalar
        yield _read_extent(block.extent, target.view(1), disk)
        return
    row_bytes = prod(block.shape[1:]) * target.element_size()
    first, num_rows = item.storage_offsets[0], item.lengths[0]
    if tuple(item.lengths[1:]) == block.shape[1:] and target.is_contiguous():
        yield _read_extent(_rows(block, row_bytes, first, num_rows), target, disk)
        return
    columns = tuple(
        slice(offset, offset + length)
        for offset, length in zip(item.storage_offsets[1:], item.lengths[1:], strict=True)
    )
    step = max(1, _SLAB_BYTES // row_bytes)
    for begin in range(0, num_rows, step):
        rows = min(step, num_rows - begin)
        slab = torch.empty(rows, *block.shape[1:], dtype=target.dtype)
        _read_extent(_rows(block, row_bytes, first + begin, rows), slab, disk).wait()
        target[begin : begin + rows] = slab[(slice(None), *columns)]


def _rows(block: Block, row_bytes: int, first: int, num_rows: int) -> Extent:
    return Extent(block.extent.file, block.extent.offset + first * row_bytes, num_rows * row_bytes)


def _read_extent(extent: Extent, target: Tensor, disk: Disk) -> Reading:
    record: np.ndarray = target.view(-1).view(torch.uint8).numpy()
    return disk.read((Piece(extent, target.dtype, target.dtype, 0),), record)
