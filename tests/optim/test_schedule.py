"""Learning rates against points worked out by hand, and what holds for every schedule."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.config.optim import OptimConfig
from moesaic.optim.schedule import SCHEDULES, learning_rate


def _rates(num_steps: int, warmup_steps: int, **fields: Any) -> list[float]:
    config = OptimConfig(**fields)
    return [learning_rate(step, num_steps, warmup_steps, config) for step in range(1, num_steps + 1)]


def test_warmup_rises_in_equal_parts_to_the_peak_when_steps_are_given() -> None:
    rates = _rates(8, 4, learning_rate=0.8, min_learning_rate=0.0, schedule="linear")
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_linear_falls_in_equal_parts_to_the_minimum_when_warmup_is_over() -> None:
    rates = _rates(6, 2, learning_rate=1.0, min_learning_rate=0.2, schedule="linear")
    assert rates == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_passes_half_way_when_half_of_the_steps_are_done() -> None:
    rates = _rates(4, 0, learning_rate=1.0, min_learning_rate=0.0, schedule="cosine")
    quarter = 0.5 * (1 + math.sqrt(0.5))
    assert rates == pytest.approx([quarter, 0.5, 1 - quarter, 0.0])


def test_wsd_stays_at_the_peak_until_the_decay_share_begins_when_asked_for() -> None:
    rates = _rates(10, 0, learning_rate=1.0, min_learning_rate=0.0, schedule="wsd", decay_share=0.5)
    assert rates == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0], abs=1e-12)


def test_wsd_decays_over_a_share_of_the_whole_run_when_there_is_a_warmup() -> None:
    rates = _rates(20, 10, learning_rate=1.0, min_learning_rate=0.0, schedule="wsd", decay_share=0.25)
    assert rates[9:] == pytest.approx([1.0] * 6 + [0.8, 0.6, 0.4, 0.2, 0.0], abs=1e-12)


def test_wsd_begins_to_decay_after_the_warmup_when_the_share_reaches_into_it() -> None:
    rates = _rates(10, 5, learning_rate=1.0, min_learning_rate=0.0, schedule="wsd", decay_share=0.9)
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0], abs=1e-12)


def test_constant_keeps_the_peak_when_warmup_is_over() -> None:
    assert _rates(4, 1, learning_rate=0.3, schedule="constant") == pytest.approx([0.3] * 4)


def test_last_rate_is_a_tenth_of_the_peak_when_no_minimum_is_given() -> None:
    assert _rates(5, 1, learning_rate=0.5, schedule="cosine")[-1] == pytest.approx(0.05)


def test_only_rate_is_the_last_one_when_the_run_has_one_step() -> None:
    assert _rates(1, 0, learning_rate=1.0, min_learning_rate=0.25, schedule="linear") == [0.25]


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    num_steps=st.integers(1, 200),
    warmup_share=st.floats(0, 0.9),
    peak=st.floats(1e-6, 1.0),
    minimum_share=st.floats(0, 1),
    decay_share=st.floats(0.01, 1.0),
)
def test_rate_rises_to_the_peak_and_then_never_rises_when_a_schedule_is_drawn(
    schedule: str, num_steps: int, warmup_share: float, peak: float, minimum_share: float, decay_share: float
) -> None:
    warmup_steps, minimum = int(num_steps * warmup_share), peak * minimum_share
    fields = {"learning_rate": peak, "min_learning_rate": minimum, "schedule": schedule, "decay_share": decay_share}
    rates = _rates(num_steps, warmup_steps, **fields)
    rising, falling = rates[:warmup_steps], rates[warmup_steps:]
    slack = 1e-9 * peak
    assert all(later > earlier for earlier, later in pairwise(rising))
    assert all(later <= earlier + slack for earlier, later in pairwise(falling))
    assert all(0 < rate <= peak + slack for rate in rising)
    assert all(minimum - slack <= rate <= peak + slack for rate in falling)
    assert rates[-1] == pytest.approx(peak if schedule == "constant" else minimum, abs=slack)
