"""Line charts: labels that do not overlap, ticks that read well, and every size of run."""

import re
import warnings
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.telemetry.chart import Level, Line, Plot, draw_plot, format_step, format_tick, spread_labels
from moesaic.telemetry.series import Series
from moesaic.telemetry.svg import render_svg


def render(plot, size=(416, 230)):
    return render_svg("chart", size, lambda figure: draw_plot(figure, plot), "", "")


def texts_of(svg):
    return re.findall(r">([^<>\n]+)</text>", svg)


@given(st.lists(st.floats(0, 100), max_size=5))
def test_spread_labels_are_a_gap_apart_below_the_top_and_in_order(heights):
    spread = spread_labels(heights, 16, 100)
    assert all(height <= 100 for height in spread)
    placed = sorted(zip(heights, spread, strict=True))
    assert all(upper[1] - lower[1] >= 16 - 1e-9 for lower, upper in pairwise(placed))


def test_labels_with_room_stay_where_they_are():
    assert spread_labels([10.0, 80.0, 40.0], 16, 100) == [10.0, 80.0, 40.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (12.5, "12.5"),
        (3e-4, "3e-4"),
        (1.25e-5, "1.25e-5"),
        (20_000, "20K"),
        (-2, "-2"),
    ],
)
def test_tick_is_short(value, text):
    assert format_tick(value) == text


@pytest.mark.parametrize(("step", "last", "text"), [(2500, 3000, "2,500"), (2500, 10_000, "2.5K"), (0, 9, "0")])
def test_steps_of_one_axis_share_a_style(step, last, text):
    assert format_step(step, last) == text


def test_chart_tells_unit_axis_and_labels():
    series = Series([1, 2, 3], [5.0, 4.0, 3.0])
    plot = Plot("nats", [Line(series, "train", label="train 3.000")], [Level(4.5, "unigram")])
    assert {"nats", "step", "train 3.000", "unigram"} <= set(texts_of(render(plot)))


@pytest.mark.parametrize("scale", ["range", "zero", "log"])
@pytest.mark.parametrize("look", ["line", "faint", "points"])
def test_single_step_is_drawn_as_a_dot_at_the_only_tick(look, scale):
    svg = render(Plot("", [Line(Series([7], [2.0]), "train", look)], scale=scale))
    assert "7" in texts_of(svg)
    assert "6" not in texts_of(svg)
    assert "<use" in svg


def test_counts_are_marked_at_whole_numbers():
    svg = render(Plot("experts", [Line(Series([1, 2, 3], [0.0, 2.0, 1.0]), "routing")], scale="zero"))
    assert not any("." in text for text in texts_of(svg))


def test_axis_from_zero_starts_there_when_all_values_are_zero():
    svg = render(Plot("", [Line(Series([1, 2], [0.0, 0.0]), "routing")], scale="zero"))
    assert "0" in texts_of(svg)
    assert not any(text.startswith(("-", "\N{MINUS SIGN}")) for text in texts_of(svg))


def test_logarithmic_axis_marks_orders_of_magnitude():
    svg = render(Plot("", [Line(Series([1, 2, 3], [0.5, 5.0, 500.0]), "optimizer")], scale="log"))
    assert {"1", "10", "100"} <= set(texts_of(svg))


def test_many_points_are_drawn_as_a_thinned_line():
    steps = range(1, 50_001)
    series = Series(steps, [float(step % 97) for step in steps])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = render(Plot("", [Line(series, "train", "faint"), Line(series, "held-out", "points")]))
    assert len(svg) < 60_000
    assert "<use" not in svg
