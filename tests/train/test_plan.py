"""What training a recipe takes of each kind of memory."""

from pathlib import Path

import pytest

from moesaic.memory.tiers import TrainingSizes
from moesaic.models.model import build_model
from moesaic.train import plan as room
from moesaic.train.plan import plan_training, size_training
from tests.train.tiny_run import tiny_run

# Two layers of four experts, three matrices of 32 x 24 each.
SPARSE = 2 * 4 * 3 * 32 * 24


def test_sizes_are_those_of_the_model_when_a_recipe_is_planned(text: Path, tmp_path: Path) -> None:
    config = tiny_run(text, tmp_path)
    total = sum(each.numel() for each in build_model(config.model, device="meta").parameters())
    sizes = size_training(config)
    assert sizes == TrainingSizes(total - SPARSE, SPARSE, 2, pytest.approx(1.0), 16)


def test_pass_touches_fewer_experts_when_it_is_short(text: Path, tmp_path: Path) -> None:
    changes = {"data.sequence_length": 2, "train.micro_batch_size": 1}
    assert size_training(tiny_run(text, tmp_path, changes)).touched == pytest.approx(1 - 0.5**2)


def test_state_is_smaller_when_the_optimizer_keeps_one_moment(text: Path, tmp_path: Path) -> None:
    assert size_training(tiny_run(text, tmp_path, {"optim.kind": "lion"})).state_bytes == 12


def test_no_expert_is_counted_when_the_model_has_none(text: Path, tmp_path: Path) -> None:
    sizes = size_training(tiny_run(text, tmp_path, {"model.num_experts": 0, "model.num_experts_per_tok": 0}))
    assert (sizes.sparse, sizes.num_layers, sizes.touched) == (0, 0, 1.0)


def test_machines_are_counted_when_the_memory_is_stated(text: Path, tmp_path: Path) -> None:
    config = tiny_run(text, tmp_path / "no" / "such" / "folder")
    sizes = size_training(config)
    # 16 D + 4 a S / L + 16 a S, all of it in memory.
    needed = 16 * sizes.dense + 2 * sizes.touched * SPARSE + 16 * sizes.touched * SPARSE
    plan = plan_training(config, 2**18)
    assert plan["tiers"]["memory"] == {"needed_bytes": pytest.approx(needed, abs=1), "machine_bytes": 2**18}
    assert plan["tiers"]["disk"]["needed_bytes"] == 12 * SPARSE
    assert plan["machines"] == -(-needed // 2**18) > 1
    assert plan["largest_expert_parameters"] < SPARSE
    assert plan["whole_bytes"] == 16 * plan["parameters"] == 16 * (sizes.dense + SPARSE)


def test_free_memory_is_what_a_machine_has_when_none_is_stated(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available_bytes", lambda: 12345)
    assert plan_training(tiny_run(text, tmp_path))["tiers"]["memory"]["machine_bytes"] == 12345
