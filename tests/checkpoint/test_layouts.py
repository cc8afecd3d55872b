"""Checkpoints of any layout of ranks, read by any other: every tensor, moment and position bit for bit."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import HuggingFaceStorageReader, load

from moesaic.checkpoint.load import load_model
from tests.checkpoint.layout import Arrays, Layout, layouts, restore_in, save_in
from tests.comm.pool import Pools
from tests.parallel.twin import Changes

CHANGES: Changes = {
    "model.router": "sigmoid",
    "model.bias_update_speed": 0.05,
    "model.num_key_value_heads": 4,
    "model.qk_norm": "width",
    "model.attention_bias": True,
    "model.attention_output_bias": True,
    "optim.learning_rate": 0.01,
}
# So that a share of a router is empty where four ranks have three, and tables are cut unevenly.
NUM_EXPERTS = (8, 6)


def _run(pools: Pools, num_ranks: int, function: Any, *arguments: Any) -> list[Any]:
    return [function(*arguments)] if num_ranks == 1 else pools(num_ranks).run(function, *arguments)


def _save(pools: Pools, layout: Layout, changes: Changes, folder: Path, asynchronous: bool = True) -> Arrays:
    return _run(pools, layout[0], save_in, layout, changes, folder, asynchronous)[0]


def _differences(found: Arrays, expected: Arrays) -> list[str]:
    assert found.keys() == expected.keys()
    return [
        name
        for name, array in expected.items()
        if found[name].dtype != array.dtype or found[name].tobytes() != array.tobytes()
    ]


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_tensor_and_moment_is_brought_back_in_all_layouts_when_saved_in(
    data: st.DataObject, pools: Pools
) -> None:
    num_experts = data.draw(st.sampled_from(NUM_EXPERTS))
    possible = layouts(num_experts)
    layout = data.draw(st.sampled_from(possible))
    kind = data.draw(st.sampled_from(["adamw", "lion"]))
    changes = {**CHANGES, "model.num_experts": num_experts, "optim.kind": kind}
    with tempfile.TemporaryDirectory() as folder:
        expected = _save(pools, layout, changes, Path(folder), data.draw(st.booleans()))
        assert any("exp_avg" in name for name in expected)
        assert expected["model/decoder.layers.0.moe.router.selection_bias"].any()
        path = Path(folder) / "step-00000002"
        for num_ranks in (1, 2, 4):
            readers = [each for each in possible if each[0] == num_ranks]
            for answer in _run(pools, num_ranks, restore_in, readers, changes, path):
                assert {reader: _differences(found, expected) for reader, found in answer.items()} == {
                    reader: [] for reader in readers
                }


@pytest.mark.parametrize(
    "layout", [Layout(4, 2, 2), Layout(4, 1, 4), Layout(4, 2, 2, 2, True), Layout(2, 1, 1)], ids=str
)
def test_every_value_is_written_once_and_the_work_shared_when_ranks_have_the_same(
    layout: Layout, pools: Pools, tmp_path: Path
) -> None:
    expected = _save(pools, layout, CHANGES, tmp_path)
    files: dict[str, int] = {}
    for name, facts in json.loads((tmp_path / "step-00000002/state.json").read_text())["files"].items():
        files[name] = facts["bytes"]
    num_bytes = sum(array.nbytes for name, array in expected.items() if "/" in name)
    headers = 0
    for name in files:
        with (tmp_path / "step-00000002" / name).open("rb") as file:
            headers += 8 + int.from_bytes(file.read(8), "little")
    assert sum(files.values()) - headers == num_bytes
    assert [sum(f"model/rank-{rank:05d}" in name for name in files) for rank in range(layout[0])] == [1] * layout[0]
    of_rank = [sum(size for name, size in files.items() if f"rank-{rank:05d}" in name) for rank in range(layout[0])]
    assert max(of_rank) < 1.5 * sum(of_rank) / layout[0]


def test_torch_reads_the_files_when_given_its_own_reader(pools: Pools, tmp_path: Path) -> None:
    expected = _save(pools, Layout(4, 4, 2), CHANGES, tmp_path)
    wanted = {
        name.removeprefix("model/"): torch.full(array.shape, 9.0)
        for name, array in expected.items()
        if name.startswith("model/")
    }
    reader = HuggingFaceStorageReader(str(tmp_path / "step-00000002/model"))
    with pytest.warns(UserWarning, match="in a single process"):
        load(wanted, storage_reader=reader, no_dist=True)
    assert all(np.array_equal(tensor.numpy(), expected[f"model/{name}"]) for name, tensor in wanted.items())


@pytest.mark.parametrize("layout", [Layout(4, 4, 2), Layout(4, 1, 4), Layout(4, 2, 2, 2, True)], ids=str)
def test_model_is_loaded_in_place_when_several_ranks_wrote_it(layout: Layout, pools: Pools, tmp_path: Path) -> None:
    expected = _save(pools, layout, CHANGES, tmp_path)
    model = load_model(tmp_path / "step-00000002")
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), expected[f"model/{name}"]), name
