"""Costs that are fitted to a few sizes: found again where they made the times, and held against published ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.bench import scale
from moesaic.bench.growth import Growth, fit_growth
from moesaic.bench.published import PUBLISHED
from moesaic.bench.scale import FITTED, LARGEST, bench_scale
from moesaic.bench.scale_plot import draw_scale
from moesaic.errors import MoesaicError

_COSTS = st.floats(0.0, 1.0).map(lambda value: round(value, 4))


@given(compute=st.floats(0.1, 1.0), crossing=_COSTS, message=_COSTS.map(lambda value: value / 100))
def test_costs_are_found_again_when_they_made_the_times(compute: float, crossing: float, message: float) -> None:
    made = Growth(compute, crossing, message, ranks_per_node=8)
    found = fit_growth({num: made.predict(num) for num in (8, 16, 32, 64)}, ranks_per_node=8)
    for num in (8, 128, 1024):
        for two_hops in (False, True):
            assert found.predict(num, two_hops) == pytest.approx(made.predict(num, two_hops), rel=1e-6)


@given(seconds=st.lists(st.floats(0.01, 10.0), min_size=1, max_size=5))
def test_no_cost_is_negative_when_times_are_any(seconds: list[float]) -> None:
    found = fit_growth({2**index: each for index, each in enumerate(seconds)}, at_once=2)
    assert min(found.compute_s, found.crossing_s, found.message_s) >= 0


def test_messages_are_those_to_the_peers_of_node_and_rail_when_they_take_two_hops() -> None:
    growth = Growth(0.0, 0.0, 1.0, ranks_per_node=8)
    assert (growth.predict(8), growth.predict(8, two_hops=True)) == (7, 7)
    assert (growth.predict(1024), growth.predict(1024, two_hops=True)) == (1023, 7 + 127)
    shared = Growth(1.0, 0.0, 0.0, at_once=2)
    assert [shared.predict(num) for num in (1, 2, 8)] == [1, 1, 4]


def test_published_sizes_that_were_not_fitted_are_predicted_within_a_tenth() -> None:
    for known in PUBLISHED:
        rows = {row["gpus"]: row for row in scale._tell_published(known)["rows"]}
        assert max(rows) == LARGEST
        later = [rows[num] for num in known.tokens_per_s if num not in FITTED]
        assert later, "there are some"
        assert all(row["is"] == "predicted" and abs(row["apart"]) < 0.1 for row in later)


def test_runs_are_measured_and_drawn_when_there_are_two_sizes(tmp_path: Path) -> None:
    told: list[str] = []
    result = bench_scale((1, 2), 2, told.append)
    assert told == ["1 ranks", "2 ranks"]
    assert [(row["ranks"], row["is"]) for row in result["here"]["rows"]] == [(1, "fitted"), (2, "fitted")]
    assert all(row["step_s"] > 0 and row["predicted_s"] > 0 for row in result["here"]["rows"])
    draw_scale(result["published"], tmp_path / "scale.svg")
    drawn = (tmp_path / "scale.svg").read_text()
    assert "DeepSpeed, predicted with exchanges in two hops" in drawn
    draw_scale(result["published"], tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_failure_of_a_run_is_told_when_ranks_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scale._MODEL, "num_attention_heads", 7)
    with pytest.raises(MoesaicError, match=r"the run of 1 ranks ended: .*heads"):
        bench_scale((1, 2), 2, lambda _: None)
