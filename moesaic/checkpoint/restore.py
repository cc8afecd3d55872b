"""Reading a checkpoint into tensors that are there: each rank reads what it has of them, whoever wrote it.

Which boxes of files go where is planned by torch's distributed checkpoint.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
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
from moesaic.checkpoint.checked_file import CheckedFile
from moesaic.checkpoint.manifest import list_files
from moesaic.checkpoint.tensors import DTYPES, Block, StoredTensor, TensorFolder
from moesaic.errors import CheckpointError

# Of rows that are read whole, where less than the whole of each is wanted.
_SLAB_BYTES = 2**23
# While one waits for the disk, the other sums.
_NUM_THREADS = 2


def restore_tensors(path: Path, tensors: Mapping[str, Mapping[str, Tensor]], agreement: Agreement) -> None:
    """Fill tensors from a checkpoint, of which each rank checks what it reads; all ranks must call.

    Args:
        path: the checkpoint.
        tensors: by name, by folder; whole or in the parts of ranks.
        agreement: the ranks.

    Raises:
        CheckpointError: a file is missing, damaged, or more than was written; or the tensors are not those that were.
    """
    agreement.do(lambda: _read_all(path, tensors))


def _read_all(path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    digests = list_files(path)
    # Files are closed when nobody reads any more.
    with ExitStack() as stack, ThreadPoolExecutor(_NUM_THREADS, "moesaic-restore") as readers:
        reads: list[Future[None]] = []
        for folder, wanted in tensors.items():
            names = [name for name in digests if name.startswith(f"{folder}/")]
            if not names:
                raise CheckpointError(f"checkpoint '{path}' lacks '{folder}'", "resume from another one")
            stored = TensorFolder(path, names).stored
            _check_fit(path, folder, stored, wanted)
            files: dict[Path, CheckedFile] = {}
            for name in names:
                files[path / name] = CheckedFile(path, name, digests[name])
                stack.callback(files[path / name].close)
            for file, length in _headers(stored).items():  # read already, and now compared
                files[file].read(0, np.empty(length, np.uint8))
            reads += [readers.submit(_read_box, files, *box) for box in _plan(stored, wanted)]
        try:
            for read in reads:
                read.result()
        finally:
            readers.shutdown(cancel_futures=True)


def _headers(stored: Mapping[str, StoredTensor]) -> dict[Path, int]:
    """Return how many bytes each file has before its values."""
    lengths: dict[Path, int] = {}
    for tensor in stored.values():
        for block in tensor.blocks:
            file, offset = block.extent.file, block.extent.offset
            lengths[file] = min(offset, lengths.get(file, offset))
    return lengths


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


def _plan(stored: Mapping[str, StoredTensor], wanted: Mapping[str, Tensor]) -> Iterator[tuple[Block, ReadItem, Tensor]]:
    """Yield what is to be read: of which block which part, and where to."""
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(wanted), _metadata(stored))
    blocks = {(name, block.offsets): block for name, tensor in stored.items() for block in tensor.blocks}
    for item in planner.create_local_plan().items:
        index = item.storage_index
        assert index.offset is not None, "a box begins somewhere"
        yield blocks[index.fqn, tuple(index.offset)], item, planner.resolve_tensor(item).detach()


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


def _read_box(files: Mapping[Path, CheckedFile], block: Block, item: ReadItem, target: Tensor) -> None:
    """Fill a target with a part of a block: rows of it, whole or each in part."""
    file, start = files[block.extent.file], block.extent.offset
    if not block.shape:  # a scalar
        value = torch.empty_like(target, device="cpu")
        file.read(start, _as_bytes(value))
        target.copy_(value)
        return
    row_bytes = prod(block.shape[1:]) * target.element_size()
    first, num_rows = item.storage_offsets[0], item.lengths[0]
    straight = target.device.type == "cpu" and target.is_contiguous()
    if tuple(item.lengths[1:]) == block.shape[1:] and straight:
        file.read(start + first * row_bytes, _as_bytes(target))
        return
    columns = tuple(
        slice(offset, offset + length)
        for offset, length in zip(item.storage_offsets[1:], item.lengths[1:], strict=True)
    )
    step = max(1, _SLAB_BYTES // row_bytes)
    for begin in range(0, num_rows, step):
        rows = min(step, num_rows - begin)
        slab = torch.empty(rows, *block.shape[1:], dtype=target.dtype)
        file.read(start + (first + begin) * row_bytes, _as_bytes(slab))
        target[begin : begin + rows] = slab[(slice(None), *columns)]


def _as_bytes(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.view(-1).view(torch.uint8).numpy()
    return array
