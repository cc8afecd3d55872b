"""Series keep what a chart must show: finite values, unbiased means, and spikes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.telemetry.series import Series, read_series, smooth, smoothing_reach, thin

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400)


def series_of(numbers):
    return Series(range(1, len(numbers) + 1), numbers)


def test_reading_leaves_out_missing_null_and_infinite_values():
    rows = [{"step": 1, "loss": 2}, {"step": 2}, {"step": 3, "loss": None}, {"step": 4, "loss": math.inf}]
    series = read_series(rows, "loss")
    assert (series.steps, series.values) == ([1], [2.0])


@given(values)
def test_smoothing_keeps_steps_and_stays_within_the_extremes(numbers):
    smoothed = smooth(series_of(numbers))
    assert list(smoothed.steps) == list(range(1, len(numbers) + 1))
    slack = 1e-6
    assert all(min(numbers) - slack <= mean <= max(numbers) + slack for mean in smoothed.values)


def test_smoothed_end_is_the_mean_of_the_points_within_reach():
    numbers = [float(n * n) for n in range(240)]
    reach = smoothing_reach(240)
    assert reach == 4
    assert smooth(series_of(numbers)).last == pytest.approx(sum(numbers[-reach - 1 :]) / (reach + 1))


def test_smoothing_does_not_lag_behind_a_straight_line():
    numbers = [float(n) for n in range(300)]
    assert smooth(series_of(numbers)).values[150] == pytest.approx(150)


def test_short_series_is_not_smoothed():
    assert list(smooth(series_of([3.0, 1.0, 2.0])).values) == [3.0, 1.0, 2.0]


@given(values, st.integers(2, 50))
def test_thinning_keeps_ends_extremes_and_the_bound(numbers, max_points):
    thinned = thin(series_of(numbers), max_points)
    assert len(thinned) <= max(2, max_points)
    assert (thinned.steps[0], thinned.steps[-1]) == (1, len(numbers))
    assert list(thinned.steps) == sorted(set(thinned.steps))
    if max_points >= 4:
        assert (min(thinned.values), max(thinned.values)) == (min(numbers), max(numbers))


def test_single_spike_survives_thinning():
    numbers = [1.0] * 100_000
    numbers[77_777] = 9.0
    thinned = thin(series_of(numbers), 500)
    assert len(thinned) <= 500
    assert 9.0 in thinned.values
