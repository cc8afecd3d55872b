"""Line charts over the steps of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from moesaic.telemetry.series import Series, thin
from moesaic.telemetry.svg import role_color
from moesaic.units import format_count

# Room around the plot, CSS pixels; the right one is wider where labels stand beside the lines' ends.
LEFT, RIGHT, LABELLED_RIGHT, TOP, BOTTOM = 50, 18, 100, 24, 38
_LABEL_HEIGHT = 16
# Beyond this many points, markers run together and the line alone is plainer.
_MAX_MARKERS = 60


@dataclass(frozen=True)
class Line:
    """One series of a chart; a label stands beside its last point, in the colour of its role."""

    series: Series
    role: str
    look: Literal["line", "faint", "points"] = "line"
    label: str = ""


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line to compare with."""

    value: float
    label: str = ""


@dataclass(frozen=True)
class Plot:
    """What a line chart shows.

    Args:
        unit: stands above the vertical axis.
        lines: drawn in order, later ones on top.
        levels: drawn below the lines.
        scale: 'zero' starts the axis at 0, 'range' fits it to the values, 'log' is logarithmic.
    """

    unit: str
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    scale: Literal["range", "zero", "log"] = "range"


def draw_plot(figure: Any, plot: Plot) -> None:
    """Draw a plot into an empty figure."""
    labelled = any([*(line.label for line in plot.lines), *(level.label for level in plot.levels)])
    axes = place_axes(figure, LABELLED_RIGHT if labelled else RIGHT)
    for level in plot.levels:
        axes.axhline(level.value, color=role_color("muted"), linewidth=1, linestyle=(0, (4, 3)))
    for line in plot.lines:
        _draw_line(axes, line)
    axes.grid(axis="y")
    label_values(figure, axes, plot.unit)
    _scale_steps(axes, plot)
    _scale_values(axes, plot)
    _label_ends(figure, axes, plot)


def place_axes(figure: Any, right: int = RIGHT) -> Any:
    """Add the axes of a chart, leaving fixed room for tick labels, so that charts of a row line up."""
    width, height = figure.get_size_inches() * figure.dpi
    box = (LEFT / width, BOTTOM / height, (width - LEFT - right) / width, (height - BOTTOM - TOP) / height)
    return figure.add_axes(box)


def label_values(figure: Any, axes: Any, text: str) -> None:
    """Say what the vertical axis measures: above it and level, where it is read without turning the head."""
    width, height = figure.get_size_inches() * figure.dpi
    y = axes.get_window_extent().y1 + 8
    figure.text(2 / width, y / height, text, color=role_color("muted"), va="bottom", ha="left")


def scale_step_axis(axes: Any, first: float, last: float) -> None:
    """Let the horizontal axis run over steps, marked at whole numbers; a single step stands in its middle."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if first == last:
        first, last = first - 0.5, last + 0.5
    axes.set_xlim(first, last)
    # One tick suffices: a run of one step has no other whole number to mark.
    num_ticks = max(2, int(axes.get_window_extent().width // 60))
    locator = MaxNLocator(num_ticks, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: format_step(step, last)))
    axes.set_xlabel("step")


def spread_labels(positions: Sequence[float], gap: float, top: float) -> list[float]:
    """Move positions apart until neighbours are at least `gap` apart and none lies above `top`.

    Order is kept; where the room below does not suffice, the lowest positions go below zero.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    spread = list(positions)
    for lower, upper in pairwise(order):
        spread[upper] = max(spread[upper], spread[lower] + gap)
    ceiling = top
    for index in reversed(order):
        spread[index] = min(spread[index], ceiling)
        ceiling = spread[index] - gap
    return spread


def format_tick(value: float) -> str:
    """Return a number as it stands on an axis: '0.25', '120K', '3e-4'."""
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return format_count(value) if abs(value) >= 1000 else f"{value:.4g}"


def format_step(step: float, last: float) -> str:
    """Return a step as it stands on an axis that ends at `last`: '2,500', or '25K' on a long one."""
    return format_count(step) if last >= 10_000 else f"{step:,.0f}"


def _draw_line(axes: Any, line: Line) -> None:
    # More points than pixels only blacken the chart.
    series = thin(line.series, max_points=max(2, int(axes.get_window_extent().width)))
    color = role_color(line.role)
    if line.look == "points" and len(series) <= _MAX_MARKERS:
        # The last point sits on the edge of the plot, and is not to be cut in half there.
        axes.plot(
            series.steps,
            series.values,
            color=color,
            linewidth=1.5,
            marker="o",
            markersize=5,
            clip_on=False,
            zorder=3,
        )
    elif len(series) == 1:
        axes.plot(series.steps, series.values, color=color, marker="o", markersize=6)
    elif line.look == "faint":
        axes.plot(series.steps, series.values, color=color, linewidth=1, alpha=0.35)
    else:
        axes.plot(series.steps, series.values, color=color)


def _scale_steps(axes: Any, plot: Plot) -> None:
    first = min(line.series.steps[0] for line in plot.lines)
    last = max(line.series.steps[-1] for line in plot.lines)
    scale_step_axis(axes, first, last)


def _scale_values(axes: Any, plot: Plot) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if plot.scale == "log":
        axes.set_yscale("log")
    axes.margins(y=0.08)
    # Asking for the limits settles them; the labels' heights depend on it.
    top = axes.get_ylim()[1]
    if plot.scale == "log":
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        # Counts are marked at whole numbers only.
        is_count = all(value == round(value) for value in plot.lines[0].series.values)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=is_count))
        if plot.scale == "zero":
            axes.set_ylim(0, top if top > 0 else 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))


def _label_ends(figure: Any, axes: Any, plot: Plot) -> None:
    """Write each label to the right of the plot, at the height of what it names."""
    labels = [(line.label, line.series.last, line.role) for line in plot.lines if line.label]
    labels += [(level.label, level.value, "muted") for level in plot.levels if level.label]
    box = axes.get_window_extent()
    width, height = figure.get_size_inches() * figure.dpi
    heights = [axes.transData.transform((0, value))[1] for _, value, _ in labels]
    for (text, _, role), y in zip(labels, spread_labels(heights, _LABEL_HEIGHT, box.y1), strict=True):
        figure.text((box.x1 + 8) / width, y / height, text, color=role_color(role), va="center", ha="left")
