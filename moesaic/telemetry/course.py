"""The sections on the course of training: loss, speed and optimizer."""

from typing import Any

from moesaic.telemetry.chart import Level, Line, Plot, format_tick
from moesaic.telemetry.section import Chart, Section, draw_line_chart
from moesaic.telemetry.series import Series, read_series, smooth

_BOTH_LINES = "Each step (light) and the moving mean."


def build_loss_section(rows: list[dict[str, Any]], baselines: dict[str, float]) -> Section:
    """Return the loss curve, with held-out points and baselines where there are any."""
    loss, held_out = read_series(rows, "loss"), read_series(rows, "held_out_loss")
    lines, caption = [], ""
    if len(loss):
        mean = smooth(loss)
        lines = [Line(loss, "train", "faint"), Line(mean, "train", label=f"train {mean.last:.3f}")]
        caption = "Train loss of each step (light) and its moving mean."
    if len(held_out):
        lines.append(Line(held_out, "held-out", "points", f"held-out {held_out.last:.3f}"))
        caption += " Points: loss on held-out text."
    if not lines:
        return Section("Loss", [], num_columns=1)
    levels = [Level(value, f"{name} {value:.3f}") for name, value in sorted(baselines.items())]
    if levels:
        caption += " Dashed: models that only count tokens."
    plot = Plot("nats per token", lines, levels)
    return Section("Loss", [draw_line_chart("Cross-entropy of the next token", caption, 1, plot)], num_columns=1)


def build_course_section(rows: list[dict[str, Any]], clip_norm: float | None) -> Section:
    """Return speed, learning rate and gradient norm, each where it was measured.

    Args:
        rows: the metrics of a run.
        clip_norm: where gradients were clipped; None, or 0 as a resolved recipe writes it: nowhere.
    """
    speed, rate, norm = (read_series(rows, key) for key in ("tokens_per_s", "learning_rate", "grad_norm"))
    charts = []
    if len(speed):
        charts.append(draw_line_chart("Speed", _BOTH_LINES, 3, _plot_noisy(speed, "speed", "tokens/s")))
    if len(rate):
        plot = Plot("rate", [Line(rate, "optimizer")], scale="zero")
        charts.append(draw_line_chart("Learning rate", "As the schedule set it.", 3, plot))
    if len(norm):
        charts.append(_draw_norm(norm, clip_norm))
    return Section("Speed and optimizer", charts, num_columns=3)


def _draw_norm(norm: Series, clip_norm: float | None) -> Chart:
    caption, levels = _BOTH_LINES, []
    if clip_norm:
        levels = [Level(clip_norm)]
        caption += f" Clipped above {format_tick(clip_norm)} (dashed)."
    plot = _plot_noisy(norm, "optimizer", "norm of all gradients", levels)
    return draw_line_chart("Gradient norm", caption, 3, plot)


def _plot_noisy(series: Series, role: str, unit: str, levels: list[Level] | None = None) -> Plot:
    """Plot a series and its moving mean from zero, or by orders of magnitude where it spans many."""
    lines = [Line(series, role, "faint"), Line(smooth(series), role)]
    low, high = min(series.values), max(series.values)
    return Plot(unit, lines, levels or [], "log" if 0 < low < high / 100 else "zero")
