"""A section of a report: a heading, charts, and the words beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.telemetry.chart import Plot, draw_plot
from moesaic.telemetry.series import Series
from moesaic.telemetry.svg import render_svg

# Width and height, CSS pixels, of a chart as wide as the page, a half or a third of it.
SIZES = {1: (880, 330), 2: (416, 230), 3: (266, 190)}
NARROW_WIDTH = 416


@dataclass(frozen=True)
class Chart:
    """One figure: its SVG, and a second drawing for narrow screens where the first is wide."""

    title: str
    caption: str
    svg: str
    narrow_svg: str = ""


@dataclass(frozen=True)
class Section:
    """Charts, `num_columns` side by side, below a heading and a line on how to read them."""

    title: str
    charts: Sequence[Chart]
    num_columns: int
    intro: str = ""
    legend_svg: str = ""


def draw_chart(
    title: str,
    caption: str,
    spoken: str,
    num_columns: int,
    draw: Callable[[Any], None],
    height: int | None = None,
) -> Chart:
    """Draw one chart of a section.

    Args:
        title: unique within the report.
        caption: stands below the title.
        spoken: what the chart shows, for those who cannot see it.
        num_columns: charts side by side, 1 to 3; decides the size.
        draw: fills the figure it is given.
        height: CSS pixels; None: as fits the number of columns.
    """
    name = "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())
    width, usual_height = SIZES[num_columns]
    height = height or usual_height
    svg = render_svg(name, (width, height), draw, title, spoken)
    if num_columns > 1:
        return Chart(title, caption, svg)
    return Chart(title, caption, svg, render_svg(f"{name}-narrow", (NARROW_WIDTH, height), draw, title, spoken))


def draw_line_chart(title: str, caption: str, num_columns: int, plot: Plot) -> Chart:
    """Draw a chart of lines; what is read aloud is told from the lines' ends and extremes."""
    # The light line of a pair shows the same series as the full one.
    told = [line for line in plot.lines if line.look != "faint"]
    spoken = f"{title}, {plot.unit}, over steps."
    for line in told:
        spoken += " " + describe_series(line.label or title, line.series)
    for level in plot.levels:
        spoken += f" Dashed line at {level.value:.4g}" + (f": {level.label}." if level.label else ".")
    return draw_chart(title, caption, spoken, num_columns, lambda figure: draw_plot(figure, plot))


def describe_series(name: str, series: Series) -> str:
    """Return a sentence with the ends and the extremes of a series."""
    if len(series) == 1:
        return f"{name}: {series.last:.4g} at step {series.steps[0]}."
    return (
        f"{name}: from {series.values[0]:.4g} at step {series.steps[0]} to {series.last:.4g} at step "
        f"{series.steps[-1]}, between {min(series.values):.4g} and {max(series.values):.4g}."
    )
