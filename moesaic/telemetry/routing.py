"""The sections on routing: how the load spread over experts, and how balanced it was.

Both are empty for a dense model.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from moesaic.telemetry.chart import Level, Line, Plot
from moesaic.telemetry.expert_load import LastLoad, LoadGrid, read_last_load, read_load_grids
from moesaic.telemetry.heat_map import draw_color_bar, draw_last_load, draw_load_over_time
from moesaic.telemetry.section import Chart, Section, draw_chart, draw_line_chart
from moesaic.telemetry.series import read_series, smooth
from moesaic.telemetry.svg import render_svg

_COLOR_BAR_SIZE = (340, 44)


@dataclass(frozen=True)
class Quantity:
    """A measure of balance.

    Args:
        key: what rows call it.
        even: its value under an even load, where that is not zero; None: zero, or none.
        is_optional: leave it out where it is zero throughout.
    """

    key: str
    title: str
    unit: str
    caption: str
    even: float | None = None
    is_optional: bool = False


QUANTITIES = (
    Quantity(
        "max_violation",
        "Worst overload (MaxVio)",
        "over the fair share",
        "By how much the busiest expert exceeds it; mean of the layers.",
    ),
    Quantity(
        "load_entropy",
        "Load entropy",
        "share of the maximum",
        "Mean of the layers. 1 (dashed) is an even load.",
        even=1.0,
    ),
    Quantity("balance_loss", "Balance loss", "before its weight", "1 (dashed) is an even load.", even=1.0),
    Quantity(
        "z_loss",
        "Router z-loss",
        "before its weight",
        "Low while router logits stay small.",
        is_optional=True,
    ),
    Quantity(
        "dead_experts",
        "Dead experts",
        "experts",
        "Chosen by no token of a step; all layers.",
        is_optional=True,
    ),
    Quantity(
        "dropped_share",
        "Dropped choices",
        "share of choices",
        "Dropped because an expert was full.",
        is_optional=True,
    ),
)


def build_load_section(rows: list[dict[str, Any]]) -> Section:
    """Return the load of each MoE layer over time."""
    grids = read_load_grids(rows)
    # Two and four maps fill rows of two, most other numbers rows of three.
    num_columns = 2 if len(grids) in (1, 2, 4) else 3
    charts = [_draw_grid(grid, num_columns) for grid in grids]
    return Section(
        "Expert load over time",
        charts,
        num_columns,
        intro="Load of each expert relative to its fair share: blue is idle, orange is overloaded, "
        "and an even load leaves a map blank.",
        legend_svg=render_svg(
            "load-scale",
            _COLOR_BAR_SIZE,
            draw_color_bar,
            "Load relative to the fair share",
            "Colour scale: blue at a quarter of the fair share, blank at it, orange at four times.",
        ),
    )


def build_last_load_section(rows: list[dict[str, Any]]) -> Section:
    """Return the load of all MoE layers at the last step that recorded it."""
    load = read_last_load(rows)
    charts = [] if load is None else [_draw_last(load)]
    return Section("Expert load at the end", charts, num_columns=1)


def build_balance_section(rows: list[dict[str, Any]]) -> Section:
    """Return each measure of balance over time, where it was measured and says something."""
    charts = []
    for quantity in QUANTITIES:
        series = read_series(rows, quantity.key)
        if not len(series) or (quantity.is_optional and not any(series.values)):
            continue
        lines = [Line(series, "routing", "faint"), Line(smooth(series), "routing")]
        levels = [] if quantity.even is None else [Level(quantity.even)]
        plot = Plot(quantity.unit, lines, levels, "zero" if quantity.even is None else "range")
        charts.append(draw_line_chart(quantity.title, quantity.caption, 3, plot))
    return Section("Balance over time", charts, num_columns=3, intro=_balance_intro(charts))


def _balance_intro(charts: list[Chart]) -> str:
    return "Each step (light) and the moving mean." if charts else ""


def _draw_grid(grid: LoadGrid, num_columns: int) -> Chart:
    last = [loads[-1] for loads in grid.relative]
    spoken = (
        f"Heat map of the load of {len(last)} experts of layer {grid.layer}, steps {grid.first_step} to "
        f"{grid.last_step}. {_describe_load(last)}"
    )
    return draw_chart(f"Layer {grid.layer}", "", spoken, num_columns, partial(draw_load_over_time, grid=grid))


def _draw_last(load: LastLoad) -> Chart:
    spoken = f"Heat map of the load of each expert of {len(load.layers)} MoE layers at step {load.step}. "
    spoken += _describe_load([value for row in load.relative for value in row])
    title = f"All MoE layers, step {load.step:,}"
    # Rows as tall as text while there is room for them.
    height = 62 + min(max(80, 24 * len(load.layers)), 420)
    return draw_chart(title, "Colours as above.", spoken, 1, partial(draw_last_load, load=load), height)


def _describe_load(loads: list[float]) -> str:
    return f"At the end, loads lie between {min(loads):.2f} and {max(loads):.2f} times the fair share."
