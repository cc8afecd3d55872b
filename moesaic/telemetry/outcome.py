"""What a run came to: its key figures and one sentence about them."""

import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from moesaic.telemetry.series import read_series, smooth, smoothing_reach
from moesaic.units import format_count, format_seconds


@dataclass(frozen=True)
class Outcome:
    """Key figures of a run; None for what its rows do not hold.

    Losses are nats a token. The train loss is the mean of the last `train_steps` steps, as a single step
    says little.
    """

    steps: int = 0
    tokens: int | None = None
    wall_s: float | None = None
    train_loss: float | None = None
    train_steps: int = 0
    held_out_loss: float | None = None
    tokens_per_s: float | None = None
    max_violation: float | None = None
    dead_experts: float | None = None


@dataclass(frozen=True)
class Tile:
    """One key figure as it is shown."""

    label: str
    value: str
    note: str = ""


def read_outcome(rows: list[dict[str, Any]]) -> Outcome:
    """Return what the rows of a run came to, from their last values; the speed is the median of all steps."""
    loss, speed = read_series(rows, "loss"), read_series(rows, "tokens_per_s")
    tokens = _last(rows, "tokens")
    return Outcome(
        steps=rows[-1]["step"] if rows else 0,
        tokens=None if tokens is None else int(tokens),
        wall_s=_last(rows, "seconds"),
        train_loss=smooth(loss).last if len(loss) else None,
        train_steps=smoothing_reach(len(loss)) + 1 if len(loss) else 0,
        held_out_loss=_last(rows, "held_out_loss"),
        tokens_per_s=median(speed.values) if len(speed) else None,
        max_violation=_last(rows, "max_violation"),
        dead_experts=_last(rows, "dead_experts"),
    )


def describe_outcome(outcome: Outcome) -> str:
    """Return one sentence for the head of a report."""
    if outcome.steps == 0:
        return "No step was recorded."
    text = _count_steps(outcome.steps)
    if outcome.tokens is not None:
        text += f" over {format_count(outcome.tokens)} tokens"
    if outcome.wall_s is not None:
        text += f" in {format_seconds(outcome.wall_s)}"
    if outcome.tokens_per_s is not None:
        text += f", at a median of {format_count(outcome.tokens_per_s)} tokens/s"
    losses = []
    if outcome.train_loss is not None:
        losses.append(f"{outcome.train_loss:.3f} in training")
    if outcome.held_out_loss is not None:
        perplexity = format_perplexity(outcome.held_out_loss)
        losses.append(f"{outcome.held_out_loss:.3f} on held-out text (perplexity {perplexity})")
    if losses:
        text += f"; the loss ended at {' and '.join(losses)}"
    return text + "."


def choose_tiles(outcome: Outcome, summary: dict[str, Any]) -> list[Tile]:
    """Return the tiles of a report, in order, for the figures that are known."""
    tiles = []
    if outcome.train_loss is not None:
        span = "last step" if outcome.train_steps == 1 else f"mean of last {_count_steps(outcome.train_steps)}"
        tiles.append(Tile("Train loss", f"{outcome.train_loss:.3f}", f"nats/token, {span}"))
    if outcome.held_out_loss is not None:
        perplexity = format_perplexity(outcome.held_out_loss)
        tiles.append(Tile("Held-out loss", f"{outcome.held_out_loss:.3f}", f"perplexity {perplexity}"))
    if outcome.tokens_per_s is not None:
        tiles.append(Tile("Speed", format_count(outcome.tokens_per_s), "tokens/s, median"))
    if outcome.wall_s is not None:
        tiles.append(Tile("Wall time", format_seconds(outcome.wall_s), _count_steps(outcome.steps)))
    if outcome.tokens is not None:
        tiles.append(Tile("Tokens seen", format_count(outcome.tokens)))
    if summary.get("parameters"):
        active = summary.get("active_parameters")
        note = f"{format_count(active)} active for a token" if active else ""
        tiles.append(Tile("Parameters", format_count(summary["parameters"]), note))
    if outcome.max_violation is not None:
        tiles.append(Tile("Worst overload", f"{outcome.max_violation:.2f}", "MaxVio, 0 is balanced"))
    if outcome.dead_experts is not None:
        tiles.append(Tile("Dead experts", f"{outcome.dead_experts:.0f}", "last step, all layers"))
    return tiles


def format_perplexity(loss: float) -> str:
    """Return e to the loss; a diverged loss has no perplexity worth a number."""
    return format_count(math.exp(loss)) if loss < 30 else "beyond 10T"


def _count_steps(steps: int) -> str:
    return f"{steps:,} {'step' if steps == 1 else 'steps'}"


def _last(rows: list[dict[str, Any]], key: str) -> float | None:
    series = read_series(rows, key)
    return series.last if len(series) else None
