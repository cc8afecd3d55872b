"""Tensors that lie in boxes, in several files: found, put together, and read whole or in part."""

import json
import math
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.mapping import Source
from moesaic.checkpoint.pieces import page_of, pieces_of
from moesaic.checkpoint.restore import restore_tensors
from moesaic.checkpoint.shard import Share, write_shares
from moesaic.checkpoint.stopwatch import Stopwatch
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.checkpoint.tensors import TensorFolder
from moesaic.comm.world import World
from moesaic.errors import CheckpointError
from moesaic.memory.disk import Disk
from moesaic.memory.page import Page, PageLayout
from tests.comm.pool import Pools


def _write(folder: Path, boxes: list[tuple[tuple[int, ...], Tensor]], shape: tuple[int, ...]) -> None:
    """Write each box of one tensor as a rank of its own would."""
    for rank, (offsets, values) in enumerate(boxes):
        write_shares(folder, [Share("model", "x", offsets, shape)], [values], rank, Stopwatch())


@st.composite
def _cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[list[int]]]:
    """Draw a shape, and where each dimension is cut."""
    shape = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    return shape, [sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]


def _boxes(whole: Tensor, cuts: list[list[int]]) -> list[tuple[tuple[int, ...], Tensor]]:
    boxes: list[tuple[tuple[int, ...], Tensor]] = [((), whole)]
    for dim, edges in enumerate(cuts):
        boxes = [
            ((*offsets, begin), values.narrow(dim, begin, end - begin))
            for offsets, values in boxes
            for begin, end in pairwise(edges)
        ]
    return boxes


def _read(page: Page, num_bytes: int) -> np.ndarray:
    record, disk = np.full(num_bytes, 77, np.uint8), Disk(num_threads=1)
    disk.read(page, record).wait()
    disk.close()
    return record


@settings(max_examples=40, deadline=None)
@given(cut=_cuts(), kept=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_tensor_is_read_whole_and_row_by_row_when_it_lies_in_boxes(
    cut: tuple[tuple[int, ...], list[list[int]]], kept: torch.dtype
) -> None:
    shape, cuts = cut
    whole = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) + 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder, _boxes(whole, cuts), shape)
        tensors = TensorFolder(folder / "model")
        page = pieces_of(Source(["x"]), kept, tensors)
        record = _read(page, whole.numel() * kept.itemsize)
        assert torch.equal(torch.from_numpy(record).view(kept).view(shape), whole.to(kept))
        if len(shape) < 2:
            return
        layout = PageLayout.of({"x": (shape[1:], kept)})
        for index in range(shape[0]):
            record = _read(page_of(index, {"x": Source(["x"])}, layout, tensors), layout.num_bytes)
            assert torch.equal(layout.views(torch.from_numpy(record)[None])["x"][0], whole[index].to(kept))


def test_runs_are_few_when_only_the_first_dimension_is_cut(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(6, 2, 2)
    _write(tmp_path, _boxes(whole, [[0, 4, 6], [0, 2], [0, 2]]), (6, 2, 2))
    tensors = TensorFolder(tmp_path / "model")
    assert len(pieces_of(Source(["x"]), torch.float32, tensors)) == 2
    assert [place for place, _ in tensors.stored["x"].runs(0, 96)] == [0, 64]


ONE, TWO = ((0, 0), torch.zeros(2, 3)), ((2, 0), torch.ones(1, 3))
BAD: dict[str, tuple[list[Any], str]] = {
    "gap": ([ONE], r"of the 9 values of 'x' 6 are in '.*model' \(rank-00000\.safetensors\)"),
    "double": (
        [ONE, TWO, TWO],
        r"'.*rank-00001\.safetensors' and '.*rank-00002\.safetensors' hold the same part of 'x'",
    ),
    "overlap": ([ONE, ((1, 1), torch.zeros(2, 1)), TWO], "hold the same part of 'x'"),
    "outside": (
        [ONE, TWO, ((3, 0), torch.ones(1, 3))],
        r"rank-00002.* a part of 'x' that begins at \[3, 0\], outside of",
    ),
    "dtype": (
        [ONE, ((2, 0), torch.ones(1, 3).double())],
        r"'x' is F32 \[3, 3\] in '.*rank-00000.*' and F64 \[3, 3\] in",
    ),
}


@pytest.mark.parametrize(("boxes", "named"), BAD.values(), ids=BAD)
def test_folder_is_refused_with_tensor_and_file_when_its_boxes_have_a(
    boxes: list[Any], named: str, tmp_path: Path
) -> None:
    _write(tmp_path, boxes, (3, 3))
    with pytest.raises(CheckpointError, match=named) as caught:
        TensorFolder(tmp_path / "model")
    assert "put them back as they were written" in caught.value.hint


@pytest.mark.parametrize(
    "note",
    [
        "{",
        "[]",
        '{"x": {}}',
        '{"x": {"saved_offsets": "a", "shape": [2]}}',
        '{"x": {"saved_offsets": [0, 0], "shape": [2, 2]}}',
    ],
)
def test_file_is_refused_when_it_does_not_tell_its_boxes(note: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2)}, tmp_path / "a.safetensors", {"DCP_SHARDING_INFO": note})
    with pytest.raises(
        CheckpointError, match=r"a\.safetensors' does not tell which parts of its tensors it holds"
    ) as caught:
        TensorFolder(tmp_path)
    assert caught.value.hint.startswith("give a checkpoint")


PLACEMENTS = {
    "rows": (Replicate(), Shard(0)),
    "columns": (Replicate(), Shard(1)),
    "both": (Shard(0), Shard(1)),
    "other_columns": (Shard(1), Replicate()),
    "copies": (Replicate(), Replicate()),
}


def _exchange(folder: Path) -> list[str]:
    """Save a tensor in each of these placements, and bring it back in each; return what failed."""
    mesh, wrong = init_device_mesh("cpu", (2, 2)), []
    agreement = Agreement(World(torch.distributed.get_rank(), 4))
    for name, placements in PLACEMENTS.items():
        whole = torch.arange(7 * 5 * 3, dtype=torch.float32).view(7, 5, 3)
        tensors = {"model": {"x": distribute_tensor(whole, mesh, placements)}}
        path = CheckpointStore(folder / name, 9, False).save(Snapshot({"step": 1}, tensors), agreement)
        for other, wanted in PLACEMENTS.items():
            found = distribute_tensor(torch.zeros(7, 5, 3), mesh, wanted)
            restore_tensors(path, {"model": {"x": found}}, agreement)
            assert isinstance(found, DTensor)
            if not torch.equal(found.full_tensor(), whole):
                wrong.append(f"{name} to {other}")
    return wrong


def test_tensor_is_brought_back_when_ranks_have_rows_columns_or_copies(pools: Pools, tmp_path: Path) -> None:
    assert pools(4).run(_exchange, tmp_path) == [[]] * 4
    # In place too, whatever the boxes.
    for name in PLACEMENTS:
        folder = tmp_path / name / "step-00000001"
        record = _read(pieces_of(Source(["x"]), torch.float32, TensorFolder(folder / "model")), 7 * 5 * 3 * 4)
        assert record.view(np.float32).tolist() == list(range(7 * 5 * 3)), name
    facts = json.loads((tmp_path / "copies/step-00000001/state.json").read_text())
    assert list(facts["files"]) == ["model/rank-00000.safetensors"]
