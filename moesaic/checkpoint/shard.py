"""What one rank writes of a checkpoint: boxes of tensors, such that every value is written once.

Which rank writes what is planned by torch's distributed checkpoint from the placements of the tensors: of those that
several ranks have, the one that has least to write so far writes it. The files are safetensors with torch's own note of
where each box lies in its tensor, so torch's `HuggingFaceStorageReader` reads them too.

Reference:
    Wan et al., "ByteCheckpoint: A Unified Checkpointing System for Large Foundation Model Development", NSDI 2025:
    boxes by name and offset, apart from the parallelism; replicas dealt out; plans kept from save to save.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.tensor import DTensor

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.checksum import Checksum
from moesaic.checkpoint.stopwatch import Stopwatch
from moesaic.checkpoint.tensor_file import bytes_of, header_of
from moesaic.checkpoint.tensors import OFFSETS, SHAPE, SHARDING
from moesaic.flush import flush

# So much is digested and then written, while it is in the processor's cache.
_CHUNK_BYTES = 2**20
Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Share:
    """A box of a tensor that this rank writes.

    Attributes:
        folder, name: of the tensor.
        offsets: index of its first value.
        shape: of the whole tensor.
    """

    folder: str
    name: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Digest:
    """What a file is known by.

    Attributes:
        num_bytes: its length.
        checksum: of all of it, as `Checksum` makes it.
    """

    num_bytes: int
    checksum: int


def plan_shares(tensors: Tensors, agreement: Agreement) -> list[Share]:
    """Deal out all values of tensors, each once, to ranks that have them; all ranks must call.

    Args:
        tensors: by name, by folder; the same on all ranks, plain ones equal, others in the part of each.
        agreement: the ranks.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    flat = {(folder, name): tensor for folder, each in tensors.items() for name, tensor in each.items()}
    planner.set_up_planner({f"{folder}/{name}": tensor for (folder, name), tensor in flat.items()})
    plans, _ = planner.create_global_plan(agreement.gather(planner.create_local_plan()))
    shares = []
    # Large ones first: whatever follows, they then begin at multiples of large powers of two.
    for item in sorted(plans[agreement.rank].items, key=lambda item: -(item.tensor_storage_size() or 0)):
        folder, _, name = item.index.fqn.partition("/")
        data = item.tensor_data
        assert data is not None, "only tensors are planned"
        assert item.index.offset is not None, "a box begins somewhere"
        if data.chunk.sizes.numel() > 0:
            shares.append(Share(folder, name, tuple(item.index.offset), tuple(data.size)))
    return shares


def own_values(tensor: Tensor) -> Tensor:
    """Return what this rank has of a tensor; the memory is shared."""
    own = tensor.detach()
    return own.to_local() if isinstance(own, DTensor) else own


def write_shares(
    path: Path, shares: Sequence[Share], values: Sequence[Tensor], rank: int, watch: Stopwatch
) -> dict[str, Digest]:
    """Write the files of a rank, one in each folder that it has something for, flushed to the disk.

    Args:
        path: folder of the folders.
        shares: boxes.
        values: of them.
        rank: who writes.
        watch: is told of the time.

    Returns:
        What each file is known by, by its name from `path` on.

    Raises:
        OSError: a file cannot be written.
    """
    digests = {}
    for folder in dict.fromkeys(share.folder for share in shares):
        own = [(share, each) for share, each in zip(shares, values, strict=True) if share.folder == folder]
        name = f"{folder}/rank-{rank:05d}.safetensors"
        (path / folder).mkdir(exist_ok=True)
        digests[name] = _write_file(path / name, own, watch)
    return digests


def sums_of(file: Path) -> Path:
    """Return where the sums of a file lie."""
    return file.with_suffix(".sums")


def _write_file(path: Path, own: Sequence[tuple[Share, Tensor]], watch: Stopwatch) -> Digest:
    boxes = {share.name: {OFFSETS: list(share.offsets), SHAPE: list(share.shape)} for share, _ in own}
    entries = {share.name: (tuple(values.shape), values.dtype) for share, values in own}
    header = header_of(entries, {"format": "pt", SHARDING: json.dumps(boxes)})
    checksum = Checksum()
    with path.open("wb", buffering=0) as file, sums_of(path).open("wb") as sums:
        for content in (memoryview(header), *(bytes_of(values) for _, values in own)):
            for begin in range(0, len(content), _CHUNK_BYTES):
                chunk = content[begin : begin + _CHUNK_BYTES]
                with watch.measure("digest"):
                    checksum.add(chunk)
                with watch.measure("write"):
                    _write_all(file.fileno(), chunk)
        with watch.measure("flush"):
            sums.write(checksum.sums)
            sums.flush()
            for each in (sums, file):
                os.fsync(each.fileno())
        # What is written is not read soon, and would push out of the page cache what is.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    flush(path.parent)
    return Digest(checksum.num_bytes, checksum.value)


def _write_all(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
