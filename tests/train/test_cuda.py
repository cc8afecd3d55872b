"""Training on a GPU: the course of the CPU, and from one to the other."""

import pytest
import torch

from moesaic.telemetry.metrics import read_metrics
from moesaic.train.run import train
from tests.train.conftest import Recipe

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu

ROUTERS = {
    "softmax": {},
    "sigmoid": {"model.router": "sigmoid", "model.bias_update_speed": 0.01},
    "switch": {"model.router": "switch", "model.num_experts_per_tok": 1, "model.capacity_factor": 1.0},
    "expert_choice": {"model.router": "expert_choice"},
    "shared_expert": {"model.shared_expert_intermediate_size": 24},
    "recomputed": {"train.recompute": True, "train.micro_batch_size": 2},
}


@pytest.mark.parametrize("router", ROUTERS)
def test_losses_are_those_of_the_cpu_when_a_gpu_computes(router: str, recipe: Recipe) -> None:
    courses = [
        read_metrics(train(recipe({"train.device": device, **ROUTERS[router]}, device)).folder.metrics)
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*courses, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)
        assert other["balance_loss"] == pytest.approx(one["balance_loss"], rel=1e-2)
    assert courses[1][-1]["held_out_loss"] == pytest.approx(courses[0][-1]["held_out_loss"], rel=1e-3)


@pytest.mark.parametrize("kind", ["adamw", "lion"])
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])
def test_run_goes_on_on_either_device_when_it_was_begun_on_one(
    kind: str, devices: tuple[str, str], recipe: Recipe
) -> None:
    rate = 0.01 if kind == "adamw" else 0.001
    changes = {"optim.kind": kind, "optim.learning_rate": rate, "optim.schedule": "constant"}
    whole = read_metrics(train(recipe({**changes, "train.steps": 8}, "whole")).folder.metrics)
    train(recipe({**changes, "train.steps": 4, "train.device": devices[0]}))
    outcome = train(recipe({**changes, "train.steps": 8, "train.device": devices[1]}))
    rows = read_metrics(outcome.folder.metrics)
    assert [row["step"] for row in rows] == list(range(1, 9))
    for one, other in zip(whole, rows, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_bfloat16_is_chosen_and_learns_when_a_gpu_computes(recipe: Recipe) -> None:
    outcome = train(recipe({"train.device": "cuda", "train.precision": None, "train.steps": 30}))
    assert 'precision = "bfloat16"' in outcome.folder.config.read_text()
    rows = read_metrics(outcome.folder.metrics)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
