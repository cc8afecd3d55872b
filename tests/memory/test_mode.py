"""The cost model that chooses how a pass gets its pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.memory import step_times as times_room
from moesaic.memory.mode import Step, choose_mode, expected_touched
from moesaic.memory.step_times import StepTimes

LAYERS, EXPERTS = 16, 64


def _choose(touched: float, num_missing: int, page: float | None, compute: float | None, num_slots: int = 200) -> str:
    return choose_mode(Step(touched, num_missing, page, compute), EXPERTS, LAYERS, num_slots).name


@pytest.mark.parametrize(("tokens", "touched"), [(0, 0), (1, 8), (2, 15), (10**6, 64)])
def test_touched_experts_grow_from_those_of_a_token_to_all(tokens: int, touched: float) -> None:
    assert expected_touched(EXPERTS, 8, tokens) == pytest.approx(touched)


def test_layers_are_streamed_when_nearly_all_is_touched_and_nothing_is_measured() -> None:
    assert _choose(0.79 * EXPERTS, 800, None, None) == "cache"
    assert _choose(0.8 * EXPERTS, 800, None, None) == "ring"


def test_choice_is_by_time_when_rates_are_measured() -> None:
    # 800 pages of 8 ms: a ring takes 6.4 s, or as long as computing; a cache reads its share and then computes.
    assert _choose(8, 800, 0.008, 0.1) == "cache"  # 0.8 s and 0.1
    assert _choose(42, 800, 0.008, 0.5) == "cache"  # 4.2 and 0.5
    assert _choose(42, 800, 0.008, 3.0) == "ring"  # 4.2 and 3: more than 6.4
    assert _choose(64, 800, 0.008, 0.01) == "ring"
    assert _choose(64, 0, 0.008, 0.01) == "cache", "nothing is missing"


@given(
    touched=st.floats(1, EXPERTS),
    num_missing=st.integers(0, LAYERS * EXPERTS),
    num_slots=st.integers(1, LAYERS * EXPERTS),
    page=st.none() | st.floats(1e-6, 1),
    compute=st.none() | st.floats(1e-6, 10),
)
def test_slots_that_are_kept_back_leave_most_of_them_a_cache(
    touched: float, num_missing: int, num_slots: int, page: float | None, compute: float | None
) -> None:
    mode = choose_mode(Step(touched, num_missing, page, compute), EXPERTS, LAYERS, num_slots)
    assert 0 <= mode.num_passing <= max(1, num_slots // 2)
    if mode.name == "cache" and touched <= num_slots // LAYERS:
        assert mode.num_passing == 0, "a layer's share has room for all that is asked for"


def test_pass_is_counted_without_what_it_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 15.0, 20.0, 30.0])
    monkeypatch.setattr(times_room.time, "perf_counter", lambda: next(now))
    times = StepTimes()
    assert times.of(5) is None
    times.begin(5, stall_seconds=1.0)
    times.end(stall_seconds=3.0)
    assert times.of(7) == pytest.approx(3.0), "passes of about as many tokens share a mean"
    assert times.of(8) is None
    times.begin(6, stall_seconds=3.0)
    times.end(stall_seconds=3.0)
    assert times.of(4) == pytest.approx(3.0 + 0.3 * 7.0)
