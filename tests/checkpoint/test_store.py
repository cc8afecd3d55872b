"""The checkpoints of a run: whole or absent, the last few and the best kept."""

import json
import struct
import zlib
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.manifest import read_state
from moesaic.checkpoint.restore import restore_tensors
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.errors import CheckpointError


def _snapshot(step: int, held_out_loss: float | None = None) -> Snapshot:
    tensors = {"model": {"a": torch.full((3,), float(step))}, "optimizer": {}}
    return Snapshot({"step": step, "held_out_loss": held_out_loss}, tensors)


def _store(folder: Path, keep_last: int = 2, keep_best: bool = True) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", keep_last, keep_best)


def _save(store: CheckpointStore, losses: dict[int, float | None]) -> list[int]:
    for step, loss in losses.items():
        store.save(_snapshot(step, loss))
    return list(store.steps())


def test_snapshot_reads_back_as_it_was_when_saved(tmp_path: Path) -> None:
    source = torch.Generator().manual_seed(3)
    tensors = {
        "model": {"w": torch.randn(2, 3), "tied": torch.ones(4).bfloat16()},
        "random": {"torch": source.get_state()},
    }
    path = _store(tmp_path).save(Snapshot({"step": 12, "held_out_loss": 0.1 + 0.2, "list": [1]}, tensors))
    assert path.name == "step-00000012"
    state = read_state(path)
    assert {key: state[key] for key in ("step", "held_out_loss", "list")} == {
        "step": 12,
        "held_out_loss": 0.1 + 0.2,
        "list": [1],
    }
    back = {
        folder: {name: torch.zeros_like(each) for name, each in tensor.items()} for folder, tensor in tensors.items()
    }
    restore_tensors(path, back, Agreement())
    for folder, expected in tensors.items():
        assert all(torch.equal(back[folder][name], tensor) for name, tensor in expected.items())


def test_last_ones_are_kept_when_more_are_saved(tmp_path: Path) -> None:
    assert _save(_store(tmp_path, keep_last=2, keep_best=False), {1: 0.5, 2: 1.0, 3: 2.0, 4: 3.0}) == [3, 4]


def test_best_one_is_kept_too_when_it_is_not_among_the_last(tmp_path: Path) -> None:
    store = _store(tmp_path, keep_last=1)
    assert _save(store, {1: 3.0, 2: 1.0, 3: 2.0}) == [2, 3]
    assert _save(store, {4: 0.5}) == [4]


def test_measured_one_is_kept_when_later_ones_carry_its_loss_on(tmp_path: Path) -> None:
    assert _save(_store(tmp_path, keep_last=1), {1: None, 2: 1.0, 3: 1.0, 4: 2.0}) == [2, 4]


def test_last_ones_are_kept_when_nothing_was_measured(tmp_path: Path) -> None:
    assert _save(_store(tmp_path, keep_last=1), {1: None, 2: None}) == [2]


def test_save_goes_on_when_an_earlier_one_is_damaged(tmp_path: Path) -> None:
    store = _store(tmp_path, keep_last=2)
    _save(store, {1: 1.0})
    (tmp_path / "checkpoints" / "step-00000001" / "state.json").write_text("{")
    assert _save(store, {2: 2.0, 3: 3.0}) == [2, 3]


def test_same_step_is_replaced_when_saved_again(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.save(_snapshot(1))
    path = store.save(Snapshot({"step": 1, "again": True}, {"other": {"b": torch.ones(1)}}))
    assert sorted(each.name for each in path.iterdir()) == ["other", "state.json"]
    assert [each.name for each in store.folder.iterdir()] == ["step-00000001"]


def test_steps_are_sorted_and_other_names_left_alone_when_listed(tmp_path: Path) -> None:
    store = _store(tmp_path, keep_last=5)
    assert (store.steps(), store.latest()) == ({}, None)
    (tmp_path / "checkpoints" / "step-mine").mkdir(parents=True)
    assert _save(store, {10: None, 9: None, 123456789: None}) == [9, 10, 123456789]
    assert store.latest() == tmp_path / "checkpoints" / "step-123456789"
    assert (tmp_path / "checkpoints" / "step-mine").is_dir()


def test_later_ones_go_when_dropped_after_a_step(tmp_path: Path) -> None:
    store = _store(tmp_path, keep_last=9)
    _save(store, dict.fromkeys([1, 2, 3]))
    store.drop_after(2)
    assert list(store.steps()) == [1, 2]
    store.drop_after(2)
    assert list(store.steps()) == [1, 2]


def test_leftovers_of_a_killed_writer_go_when_a_store_opens(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _save(store, {1: None})
    (store.folder / ".writing-step-00000002").mkdir()
    (store.folder / "step-00000001").rename(store.folder / ".replaced-step-00000001")
    assert list(_store(tmp_path).steps()) == [1]
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


def test_save_is_refused_and_earlier_ones_stay_when_the_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*step-00000001"):
        _store(tmp_path).save(_snapshot(1))


def test_load_is_refused_with_the_way_back_when_the_state_is_cut(tmp_path: Path) -> None:
    path = _store(tmp_path).save(_snapshot(1))
    (path / "state.json").write_bytes((path / "state.json").read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"checkpoint '.*step-00000001' is damaged") as raised:
        read_state(path)
    assert "--resume PATH" in raised.value.hint


def test_load_is_refused_when_there_is_no_state(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.json' is missing"):
        read_state(tmp_path)


def _checksum(content: bytes) -> int:
    sums = b""
    for begin in range(0, len(content), 65536):
        block = content[begin : begin + 65536].ljust(65536, b"\0")
        words = struct.unpack("<8192Q", block)
        sums += (sum((2 * index + 1) * word for index, word in enumerate(words)) % 2**64).to_bytes(8, "little")
    return zlib.crc32(sums)


def test_state_is_plain_json_with_the_files_when_read_by_others(tmp_path: Path) -> None:
    path = _store(tmp_path).save(_snapshot(7, 1.5))
    file = path / "model" / "rank-00000.safetensors"
    facts = {"bytes": file.stat().st_size, "checksum": f"{_checksum(file.read_bytes()):08x}"}
    assert json.loads((path / "state.json").read_text()) == {
        "format": 2,
        "files": {"model/rank-00000.safetensors": facts},
        "step": 7,
        "held_out_loss": 1.5,
    }


def test_best_is_among_the_measured_ones_when_a_loss_is_not_finite(tmp_path: Path) -> None:
    store = _store(tmp_path, keep_last=1)
    for step, loss in enumerate([float("nan"), 4.0, 3.0, 5.0], start=1):
        store.save(_snapshot(step, loss))
    assert list(store.steps()) == [3, 4]
