"""What a person sees while a run goes on."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from moesaic.train import progress
from moesaic.train.progress import ProgressHook


def _shown(rows: list[dict[str, Any]], is_terminal: bool = False, first_step: int = 0) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=200)
    hook = ProgressHook(console, 9, first_step)
    for row in rows:
        state: Any = SimpleNamespace(step=row["step"])
        hook.after_step(state, {"tokens_per_s": 1234.5, "loss": 2.5, **row})
    hook.close()
    return stream.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the hook reads; the first entry."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_line_is_printed_at_evaluations_and_the_end_when_there_is_no_terminal(clock: list[float]) -> None:
    shown = _shown([{"step": 1}, {"step": 2, "held_out_loss": 3.25}, {"step": 3}, {"step": 9}])
    assert [line.split("  ")[0] for line in shown.splitlines()] == ["step 2/9", "step 9/9"]
    assert "loss 2.500  held-out 3.250  1,234 tokens/s" in shown


def test_line_is_printed_when_ten_seconds_have_passed(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([100.0, 105.0, 110.0, 111.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))
    shown = _shown([{"step": 4}, {"step": 5}, {"step": 6}], first_step=3)
    assert [line.split("  ")[0] for line in shown.splitlines()] == ["step 5/9"]
    assert "20 s left" in shown


def test_imbalance_is_shown_when_the_model_has_experts(clock: list[float]) -> None:
    assert "imbalance 0.75" in _shown([{"step": 9, "max_violation": 0.75}])


def test_bar_moves_to_the_step_when_there_is_a_terminal() -> None:
    shown = _shown([{"step": 4, "held_out_loss": 3.25}], is_terminal=True, first_step=3)
    assert "4/9" in shown
    assert "held-out 3.250" in shown
