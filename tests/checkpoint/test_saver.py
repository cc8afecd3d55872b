"""Checkpoints that are written beside training: what training waits for, and what it is told."""

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from moesaic.checkpoint import saver as module
from moesaic.checkpoint import store as store_module
from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.restore import restore_tensors
from moesaic.checkpoint.saver import Saver
from moesaic.checkpoint.shard import Share
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.comm.world import World
from moesaic.errors import CheckpointError
from tests.checkpoint.stored import read_checkpoint
from tests.comm.pool import Pools

PHASES = {"wait", "collect", "plan", "stall", "copy", "check", "digest", "write", "flush", "publish", "total"}


def _store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", 9, False)


def _snapshot(step: int, values: Tensor | None = None) -> Snapshot:
    return Snapshot({"step": step}, {"model": {"w": torch.full((3,), float(step)) if values is None else values}})


def _saved(folder: Path, step: int) -> list[float]:
    return read_checkpoint(folder / "checkpoints" / f"step-{step:08d}")["model"]["w"].flatten().tolist()


def test_checkpoint_is_of_its_step_when_parameters_move_before_the_copy_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = np.copyto

    def copy_slowly(*arguments: Any) -> None:
        time.sleep(0.2)
        copy(*arguments)

    monkeypatch.setattr(module.np, "copyto", copy_slowly)
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    saver = Saver(_store(tmp_path), Agreement())
    optimizer.register_step_pre_hook(lambda *_: saver.wait_copied())
    for step in (1, 2):
        saver.begin(lambda step=step: _snapshot(step, parameter))  # type: ignore[misc]
        parameter.grad = torch.ones(4)
        optimizer.step()
    saver.wait()
    assert (_saved(tmp_path, 1), _saved(tmp_path, 2), parameter.tolist()) == ([1.0] * 4, [0.5] * 4, [0.0] * 4)


def _hold_writes(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let nothing be written before the event is set."""
    write, go = store_module.write_shares, threading.Event()

    def wait_and_write(*arguments: Any) -> Any:
        assert go.wait(20)
        return write(*arguments)

    monkeypatch.setattr(store_module, "write_shares", wait_and_write)
    return go


def test_training_goes_on_and_the_next_save_waits_when_one_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = _hold_writes(monkeypatch)
    reports: list[dict[str, Any]] = []
    saver = Saver(_store(tmp_path), Agreement(), report=reports.append)
    saver.begin(lambda: _snapshot(1))
    saver.wait_copied()
    assert not _store_names(tmp_path)
    threading.Timer(0.2, go.set).start()
    saver.begin(lambda: _snapshot(2))
    assert _store_names(tmp_path)[0] == "step-00000001"
    saver.wait()
    assert _store_names(tmp_path) == ["step-00000001", "step-00000002"]
    assert [row["step"] for row in reports] == [1, 2]
    assert reports[0]["seconds"]["stall"] < 0.1 < reports[1]["seconds"]["wait"] <= reports[1]["seconds"]["stall"]


def _store_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_report_tells_bytes_and_where_the_time_went_when_saved(asynchronous: bool, tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    seen: list[list[float]] = []

    def check(shares: Sequence[Share], values: Sequence[Tensor]) -> None:
        seen.append(values[0].tolist())
        assert [share.name for share in shares] == ["w"]

    saver = Saver(_store(tmp_path), Agreement(), asynchronous, check, report=reports.append)
    saver.begin(lambda: _snapshot(3))
    saver.wait()
    (row,) = reports
    assert (row["step"], row["files"], row["ranks"], seen) == (3, 1, 1, [[3.0] * 3])
    facts = json.loads((tmp_path / "checkpoints/step-00000003/state.json").read_text())["files"]
    assert row["bytes"] == sum(file["bytes"] for file in facts.values())
    assert row["seconds"].keys() == PHASES - (set() if asynchronous else {"copy"})
    assert all(0 <= each <= row["seconds"]["total"] for each in row["seconds"].values())
    assert (row["seconds"]["stall"] == row["seconds"]["total"]) != asynchronous


def test_memory_of_the_copy_is_kept_and_plain_saves_have_none_when_saving_again(tmp_path: Path) -> None:
    saver = Saver(_store(tmp_path), Agreement())
    places = []
    for step in (1, 2):
        saver.begin(lambda step=step: _snapshot(step))  # type: ignore[misc]
        saver.wait()
        places.append(saver._staged[0].data_ptr())
    assert places[0] == places[1]
    assert _saved(tmp_path, 2) == [2.0] * 3
    plain = Saver(_store(tmp_path), Agreement(), asynchronous=False)
    plain.begin(lambda: _snapshot(3))
    assert plain._staged == []


def test_failure_is_told_once_and_the_next_one_is_saved_when_a_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(_store(tmp_path), Agreement())
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_shares", _fail)
        saver.begin(lambda: _snapshot(1))
        saver.wait_copied()
        with pytest.raises(CheckpointError, match=r"cannot write '.*step-00000001': .*No space left") as caught:
            saver.wait()
    assert "what was saved before is whole" in caught.value.hint
    assert not saver.has_failed
    saver.wait()
    assert not any((tmp_path / "checkpoints").iterdir())
    saver.begin(lambda: _snapshot(2))
    saver.wait()
    assert _store_names(tmp_path) == ["step-00000002"]


def _fail(*_: Any) -> Any:
    raise OSError(28, "No space left on device")


def test_failed_copy_is_told_and_nothing_written_when_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> None:
        raise MemoryError("no memory for the copy")

    monkeypatch.setattr(module.np, "copyto", run_out)
    saver = Saver(_store(tmp_path), Agreement())
    saver.begin(lambda: _snapshot(1))
    saver.wait_copied()
    with pytest.raises(MemoryError, match="no memory for the copy"):
        saver.wait()
    assert not (tmp_path / "checkpoints").exists()


def test_nothing_is_waited_for_when_a_save_is_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = _hold_writes(monkeypatch)
    saver = Saver(_store(tmp_path), Agreement())
    saver.begin(lambda: _snapshot(1))
    saver.abandon()
    saver.wait()
    assert not _store_names(tmp_path)
    go.set()


def _save_where_one_fails(folder: Path, failing: int) -> str:
    """Save twice with two ranks, of which one cannot write the second time; return what is told here."""
    world = World(dist.get_rank(), dist.get_world_size())
    saver = Saver(_store(folder), Agreement.apart(world, 30))
    tensors = {"model": {name: torch.ones(5) for name in "ab"}}
    saver.begin(lambda: Snapshot({"step": 1}, tensors))
    saver.wait()
    with pytest.MonkeyPatch.context() as patch:
        if world.rank == failing:
            patch.setattr(store_module, "write_shares", _fail)
        saver.begin(lambda: Snapshot({"step": 2}, tensors))
        with pytest.raises(CheckpointError) as caught:
            saver.wait()
    return f"{caught.value.text} | {caught.value.hint}"


@pytest.mark.parametrize("failing", [0, 1])
def test_save_fails_on_all_ranks_and_names_the_one_when_it_cannot_write(
    failing: int, pools: Pools, tmp_path: Path
) -> None:
    told = pools(2).run(_save_where_one_fails, tmp_path, failing)
    assert "No space left" in told[0]
    assert "No space left" in told[1]
    assert told[1 - failing].startswith(f"rank {failing} failed: ")
    assert not told[failing].startswith("rank")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def _restore_damaged(path: Path, shapes: dict[str, int]) -> str:
    """Load half of each tensor; return what is told here."""
    agreement, mesh = Agreement(World(dist.get_rank(), dist.get_world_size())), init_device_mesh("cpu", (2,))
    tensors = {"model": {name: distribute_tensor(torch.zeros(size), mesh, [Shard(0)]) for name, size in shapes.items()}}
    with pytest.raises(CheckpointError) as caught:
        restore_tensors(path, tensors, agreement)
    return caught.value.text


def _write_by_two(folder: Path) -> None:
    agreement = Agreement(World(dist.get_rank(), dist.get_world_size()))
    tensors = {"model": {name: torch.ones(90_000) for name in "ab"}}
    _store(folder).save(Snapshot({"step": 1}, tensors), agreement)


def test_load_fails_on_all_ranks_and_names_file_and_rank_when_damaged(pools: Pools, tmp_path: Path) -> None:
    pools(2).run(_write_by_two, tmp_path)
    path = tmp_path / "checkpoints" / "step-00000001"
    second = path / "model" / "rank-00001.safetensors"
    content = second.read_bytes()
    second.write_bytes(content[:-1] + b"x")
    told = pools(2).run(_restore_damaged, path, {"a": 90_000, "b": 90_000})
    # The end of the file is read by the second rank alone.
    assert "is damaged: 'model/rank-00001.safetensors' has other bytes within 65536 from byte 327680 on" in told[1]
    assert told[0] == f"rank 1 failed: {told[1]}"
    second.write_bytes(content)
    told = pools(2).run(_restore_damaged, path, {"a": 90_000, "b": 90_001})
    assert all(
        "does not fit the run: its model has 'b' of float32 [90000], expected of float32 [90001]" in each
        for each in told
    )
    second.unlink()
    told = pools(2).run(_restore_damaged, path, {"a": 90_000, "b": 90_000})
    assert all("lacks 'model/rank-00001.safetensors', one of its 2 files" in each for each in told)
    second.write_bytes(content)
    (path / "model" / "rank-00002.safetensors").write_bytes(content)
    told = pools(2).run(_restore_damaged, path, {"a": 90_000, "b": 90_000})
    assert all("holds 'model/rank-00002.safetensors', which is none of the 2 files" in each for each in told)
