"""Each policy against its definition, computed anew from the whole history, and the paper's algorithm line by line."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import ConfigError
from moesaic.memory.policy import POLICIES, Hits, Policy, make_policy

# What happens: 'step', 'use', 'add' or 'remove', and to which expert.
Event = tuple[str, int]
KIND = st.sampled_from(["step", "use", "use", "add"])
EVENTS = st.lists(st.tuples(KIND, st.integers(0, 4)), min_size=20, max_size=60)


def _steps_of_uses(history: list[Event], expert: int) -> list[int]:
    return [
        sum(each == "step" for each, _ in history[:index])
        for index, event in enumerate(history)
        if event == ("use", expert)
    ]


def _lru(history: list[Event], expert: int) -> Any:
    return max((index for index, event in enumerate(history) if event == ("use", expert)), default=-1)


def _lfu(history: list[Event], expert: int) -> Any:
    steps = _steps_of_uses(history, expert)
    return len(steps), max(steps, default=-1)


def _decayed(history: list[Event], expert: int, decay: Fraction) -> Any:
    now, steps = sum(each == "step" for each, _ in history), _steps_of_uses(history, expert)
    return sum((decay ** (now - step) for step in steps), Fraction(0)), max(steps, default=-1)


def _hits(history: list[Event], expert: int, threshold: float, beta: float, period: int) -> Any:
    added = max(index for index, event in enumerate(history) if event == ("add", expert))
    hits = 1.0
    for index, (kind, used) in enumerate(history):
        if kind != "use" or index < added:
            continue
        num_before = sum(each == "use" for each, _ in history[:index])
        if num_before > 0 and num_before % period == 0:
            hits *= beta
        hits += used == expert
    return hits < threshold, hits, added


def _check(policy: Policy, oracle: Callable[[list[Event], int], Any], capacity: int, events: list[Event]) -> None:
    """Drive a cache of so many pages, and ask both in which order its pages would leave, after all that happens."""
    history: list[Event] = []
    resident: set[int] = set()

    def happen(kind: str, expert: int) -> None:
        history.append((kind, expert))
        if kind == "step":
            policy.step()
        else:
            {"use": policy.use, "add": policy.add, "remove": policy.remove}[kind](expert)
        staying, leaving = resident.copy(), []
        while staying:
            leaving.append(policy.victim(sorted(staying)))
            assert policy.victim(sorted(staying, reverse=True)) == leaving[-1]
            staying.remove(leaving[-1])
        assert leaving == sorted(resident, key=lambda each: (oracle(history, each), -each))

    for kind, expert in events:
        if kind == "add" and expert in resident:
            continue
        if kind == "add" and len(resident) == capacity:
            victim = policy.victim(resident)
            resident.remove(victim)
            happen("remove", victim)
        if kind == "add":
            resident.add(expert)
        happen(kind, expert)


@settings(max_examples=60)
@given(capacity=st.integers(2, 4), events=EVENTS)
def test_lru_equals_its_definition_when_anything_happens(capacity: int, events: list[Event]) -> None:
    _check(make_policy("lru"), _lru, capacity, events)


@settings(max_examples=60)
@given(capacity=st.integers(2, 4), events=EVENTS)
def test_lfu_equals_its_definition_when_anything_happens(capacity: int, events: list[Event]) -> None:
    _check(make_policy("lfu"), _lfu, capacity, events)


@settings(max_examples=60)
@given(
    # Not 1/2: two uses a step ago would be worth one now, which floating point need not know.
    decay=st.sampled_from([Fraction(24, 25), Fraction(9, 10), Fraction(3, 10)]),
    capacity=st.integers(2, 4),
    events=EVENTS,
)
def test_decayed_equals_its_definition_when_anything_happens(
    decay: Fraction, capacity: int, events: list[Event]
) -> None:
    policy = make_policy("decayed", decay=float(decay))
    _check(policy, lambda history, expert: _decayed(history, expert, decay), capacity, events)


@settings(max_examples=60)
@given(
    threshold=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    beta=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    period=st.integers(1, 7),
    capacity=st.integers(2, 4),
    events=EVENTS,
)
def test_hits_equal_their_definition_when_anything_happens(
    threshold: float, beta: float, period: int, capacity: int, events: list[Event]
) -> None:
    policy = make_policy("hits", threshold=threshold, beta=beta, period=period)
    _check(policy, lambda history, expert: _hits(history, expert, threshold, beta, period), capacity, events)


@pytest.mark.parametrize("name", POLICIES)
def test_page_leaves_first_when_its_expert_was_never_used(name: str) -> None:
    policy = make_policy(name)
    policy.step()
    for expert in (1, 0, 2):
        policy.add(expert)
    for expert in (0, 2):
        policy.use(expert)
    policy.step()
    assert policy.victim([0, 1, 2]) == 1


@pytest.mark.parametrize("name", ["decayed", "lfu", "lru"])
def test_higher_id_leaves_when_no_expert_was_ever_used(name: str) -> None:
    assert make_policy(name).victim([1, 3, 2]) == 3


def test_decayed_remembers_an_expert_when_its_page_has_left() -> None:
    policy = make_policy("decayed")
    for _ in range(3):
        policy.step()
        policy.use(0)
    policy.add(0)
    policy.remove(0)
    policy.step()
    policy.use(1)
    policy.add(1)
    policy.add(0)
    assert policy.victim([0, 1]) == 1


def test_decayed_prefers_three_old_uses_to_a_new_one_until_they_are_worth_less() -> None:
    policy = make_policy("decayed", decay=0.5)
    for _ in range(3):
        policy.use(0)
    policy.step()
    policy.use(1)
    assert policy.victim([0, 1]) == 1  # 1.5 against 1
    policy.step()
    policy.use(2)
    assert policy.victim([0, 2]) == 0  # 0.75 against 1


def test_decayed_still_tells_experts_apart_when_very_many_steps_have_passed() -> None:
    policy = make_policy("decayed", decay=0.5)
    for _ in range(100_000):
        policy.step()
    policy.use(0)
    policy.use(0)
    policy.use(1)
    assert policy.victim([0, 1]) == 1


def _hits_of(policy: Policy, *experts: int) -> list[float]:
    return [policy.worth(expert)[1] for expert in experts]


def test_hits_count_one_more_when_a_resident_page_is_used() -> None:
    policy = Hits()
    policy.add(0)
    policy.use(0)
    policy.use(0)
    assert _hits_of(policy, 0) == [3]


def test_hits_are_one_when_a_page_comes_that_was_asked_for() -> None:
    policy = Hits()
    policy.use(0)
    policy.add(0)
    assert _hits_of(policy, 0) == [1]


def test_hits_are_one_again_when_a_page_comes_back_in_the_place_of_another() -> None:
    policy = Hits()
    policy.add(0)
    policy.use(0)
    policy.remove(0)
    policy.add(1)
    policy.use(0)
    policy.remove(1)
    policy.add(0)
    assert _hits_of(policy, 0) == [1]


def _hit(policy: Policy, hits: dict[int, int]) -> None:
    """Let pages come, in this order, and be used until they have so many hits."""
    for expert in hits:
        policy.add(expert)
    for expert, count in hits.items():
        for _ in range(count - 1):
            policy.use(expert)


def test_hits_fewest_at_the_threshold_leave_when_others_have_fewer() -> None:
    policy = Hits(threshold=2, period=100)
    _hit(policy, {0: 1, 1: 4, 2: 2, 3: 3})
    assert policy.victim([0, 1, 2, 3]) == 2


def test_hits_fewest_of_all_leave_when_none_is_at_the_threshold() -> None:
    policy = Hits(threshold=9, period=100)
    _hit(policy, {0: 3, 1: 2, 2: 4})
    assert policy.victim([0, 1, 2]) == 1


def test_hits_fewest_of_all_leave_when_no_threshold_is_given() -> None:
    policy = Hits(period=100)
    _hit(policy, {0: 40, 1: 1, 2: 20})
    assert policy.victim([0, 1, 2]) == 1


@pytest.mark.parametrize("threshold", [0, 1, 3])
def test_hits_first_to_come_leaves_when_counts_are_equal(threshold: float) -> None:
    policy = Hits(threshold=threshold, period=100)
    _hit(policy, {2: 2, 0: 2, 1: 2})
    assert policy.victim([0, 1, 2]) == 2
    policy.remove(2)
    policy.add(2)
    policy.use(2)
    assert policy.victim([0, 1, 2]) == 0


def test_hits_fall_once_by_beta_when_the_period_is_over() -> None:
    policy = Hits(beta=0.5, period=3)
    _hit(policy, {0: 3, 1: 2})
    assert _hits_of(policy, 0, 1) == [3, 2]
    policy.use(0)
    assert _hits_of(policy, 0, 1) == [2.5, 1]
    policy.use(0)
    policy.use(0)
    assert _hits_of(policy, 0, 1) == [4.5, 1]
    policy.use(1)
    assert _hits_of(policy, 0, 1) == [2.25, 1.5]


def test_hits_steps_are_uses_when_they_miss_and_not_token_steps() -> None:
    policy = Hits(beta=0.5, period=2)
    policy.add(0)
    for _ in range(5):
        policy.step()
    policy.use(1)
    policy.use(2)
    policy.use(3)
    assert _hits_of(policy, 0) == [0.5]


def test_hits_of_a_page_fall_too_when_the_last_use_of_the_period_brought_it() -> None:
    policy = Hits(beta=0.5, period=1)
    policy.use(0)
    policy.add(0)
    assert _hits_of(policy, 0) == [1]
    policy.use(1)
    assert _hits_of(policy, 0) == [0.5]


def test_policy_is_refused_when_its_name_is_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown cache policy 'lur'") as caught:
        make_policy("lur")
    assert caught.value.hint == "did you mean 'lru'?"
    with pytest.raises(ConfigError) as caught:
        make_policy("belady")
    assert caught.value.hint == "accepted: decayed, hits, lfu, lru"


@pytest.mark.parametrize(
    ("name", "option", "value", "hint"),
    [
        ("decayed", "decay", 0.0, "it must lie above 0 and be at most 1"),
        ("decayed", "decay", 1.01, "it must lie above 0 and be at most 1"),
        ("decayed", "decay", float("nan"), "it must lie above 0 and be at most 1"),
        ("hits", "threshold", -1, "it must be 0 or more"),
        ("hits", "beta", -0.1, "it must lie within 0..1"),
        ("hits", "beta", 1.1, "it must lie within 0..1"),
        ("hits", "period", 0, "it must be 1 or more"),
    ],
)
def test_option_is_refused_when_out_of_range(name: str, option: str, value: float, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"cache policy got {option} of {value}") as caught:
        make_policy(name, **{option: value})
    assert caught.value.hint == hint
