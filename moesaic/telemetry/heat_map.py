"""Heat maps of expert load, coloured by the ratio to the fair share.

The colour scale is the same in every chart and every run: logarithmic, so that half and twice the fair share
are equally strong, from a quarter to four times. A fair load is transparent: the page shows through, light or
dark, and only what is out of balance stands out.
"""

import math
from collections.abc import Sequence
from typing import Any

from moesaic.telemetry.chart import label_values, place_axes, scale_step_axis
from moesaic.telemetry.expert_load import LastLoad, LoadGrid

# Blue and orange, which every kind of colour vision tells apart, mid-light for both pages.
_UNDER, _OVER = (0.12, 0.47, 0.80), (0.87, 0.42, 0.10)
_LIMIT = 4.0
_NUM_COLORS = 63  # odd, so that one colour is exactly fair; few, so that images compress


def draw_load_over_time(figure: Any, grid: LoadGrid) -> None:
    """Draw one layer: steps to the right, experts downward."""
    axes = place_axes(figure)
    num_experts = len(grid.relative)
    scale_step_axis(axes, grid.first_step, grid.last_step)
    _draw_cells(axes, grid.relative, (*axes.get_xlim(), num_experts - 0.5, -0.5))
    _mark_whole_numbers(axes.yaxis)
    label_values(figure, axes, "expert")


def draw_last_load(figure: Any, load: LastLoad) -> None:
    """Draw the last load: experts to the right, MoE layers downward."""
    axes = place_axes(figure)
    num_experts = max(len(row) for row in load.relative)
    rows = [[*row, *[float("nan")] * (num_experts - len(row))] for row in load.relative]
    _draw_cells(axes, rows, (-0.5, num_experts - 0.5, len(rows) - 0.5, -0.5))
    _mark_whole_numbers(axes.xaxis)
    axes.set_xlabel("expert")
    stride = -(-len(load.layers) // 12)
    places = range(0, len(load.layers), stride)
    axes.set_yticks(places, [str(load.layers[place]) for place in places])
    label_values(figure, axes, "layer")


def draw_color_bar(figure: Any) -> None:
    """Draw the scale that all load heat maps share."""
    axes = figure.add_axes((0.003, 0.5, 0.994, 0.45))
    shades = [_LIMIT ** (2 * index / (_NUM_COLORS - 1) - 1) for index in range(_NUM_COLORS)]
    _draw_cells(axes, [shades], (-2, 2, 0, 1))
    axes.set_xticks(range(-2, 3), ["¼ or less", "½", "fair share", "2", "4 or more"])
    axes.set_yticks([])
    ends = axes.get_xticklabels()
    ends[0].set_horizontalalignment("left")
    ends[-1].set_horizontalalignment("right")


def _draw_cells(axes: Any, relative: Sequence[Sequence[float]], extent: tuple[float, float, float, float]) -> None:
    from matplotlib.colors import LogNorm

    # A dead expert has no logarithm; it takes the colour of the lower end.
    floored = [[load if math.isnan(load) else max(load, 1 / _LIMIT) for load in row] for row in relative]
    norm = LogNorm(1 / _LIMIT, _LIMIT)
    axes.imshow(floored, cmap=_build_color_map(), norm=norm, extent=extent, aspect="auto", interpolation="none")
    for spine in axes.spines.values():
        spine.set_visible(True)


def _build_color_map() -> Any:
    """Fade out from blue, then in to orange; grey where a layer has no such expert."""
    from matplotlib.colors import LinearSegmentedColormap

    stops = [(0.0, (*_UNDER, 1.0)), (0.5, (*_UNDER, 0.0)), (0.5, (*_OVER, 0.0)), (1.0, (*_OVER, 1.0))]
    color_map = LinearSegmentedColormap.from_list("load", stops, N=_NUM_COLORS)
    return color_map.with_extremes(bad=(0.5, 0.5, 0.5, 0.5))


def _mark_whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 4, 5, 8, 10]))
