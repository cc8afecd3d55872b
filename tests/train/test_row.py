"""One line of the metrics."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moesaic.nn.moe.load import ExpertLoad
from moesaic.train.row import metrics_row
from moesaic.train.step import StepResult


def _row(step: int = 5, num_steps: int = 10, loads: dict[int, ExpertLoad] | None = None) -> dict[str, Any]:
    state: Any = SimpleNamespace(step=step, seconds=3.0, tokens=640)
    result = StepResult(2.5, {"balance_loss": 1.5}, loads or {}, 0.75, 0.01, 128)
    return metrics_row(state, result, 0.5, num_steps)


def _loads() -> dict[int, ExpertLoad]:
    return {
        0: ExpertLoad(torch.tensor([6, 2, 0, 0]), torch.tensor(2)),
        3: ExpertLoad(torch.tensor([2, 2, 2, 2]), torch.tensor(0)),
    }


def test_row_holds_the_figures_of_the_step_when_the_model_is_dense() -> None:
    assert _row() == {
        "step": 5,
        "loss": 2.5,
        "tokens_per_s": 256.0,
        "learning_rate": 0.01,
        "grad_norm": 0.75,
        "seconds": 3.0,
        "tokens": 640,
    }


def test_row_holds_loads_over_all_layers_when_the_model_has_experts() -> None:
    row = _row(loads=_loads())
    assert row["balance_loss"] == 1.5
    assert row["max_violation"] == pytest.approx((0.75 * 4 - 1) / 2)
    assert row["dead_experts"] == 2
    assert row["dropped_share"] == pytest.approx(0.125)
    assert row["load_entropy"] == pytest.approx((0.8112781 / 2 + 1) / 2)
    assert row["expert_load"] == {"layers": {"0": [0.75, 0.25, 0.0, 0.0], "3": [0.25, 0.25, 0.25, 0.25]}}


@pytest.mark.parametrize(("step", "is_told"), [(1, True), (2, False), (5, True), (999, False), (1000, True)])
def test_load_of_every_expert_is_told_some_two_hundred_times_when_a_run_is_long(step: int, is_told: bool) -> None:
    assert ("expert_load" in _row(step, 1000, _loads())) == is_told
