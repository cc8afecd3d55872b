"""The model of a mixture in chunks, against formulas and by its properties."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.comm.cost import Cost, fit_cost
from moesaic.parallel.schedule import (
    DEGREES,
    Costs,
    Layer,
    Schedule,
    Task,
    choose_degree,
    choose_schedule,
    lay_out,
    pipeline,
    plan_gradients,
    predict,
    predict_backward,
)

SECONDS = st.floats(1e-6, 1.0)
COST = st.builds(Cost, SECONDS, st.floats(1e-9, 1e-3))
COSTS = st.builds(
    Costs,
    st.lists(COST, min_size=1, max_size=2).map(tuple),
    COST,
    COST,
    COST,
    st.floats(0.0, 1.0),
)
LAYER = st.builds(
    Layer, st.integers(1, 10_000), st.floats(1.0, 1e6), st.floats(1.0, 1e5), st.floats(0.0, 1e5), st.integers(0, 10**7)
)


def test_tasks_wait_for_their_place_and_for_others_when_laid_out() -> None:
    tasks = [
        Task("link", 2.0),
        Task("link", 2.0),
        Task("cpu", 3.0, (0,)),
        Task("cpu", 3.0, (1,)),
        Task("link", 1.0, (2,)),
    ]
    assert lay_out(tasks) == [2.0, 4.0, 5.0, 8.0, 6.0]


@given(COSTS, LAYER, st.booleans())
def test_mixture_takes_the_sum_of_its_parts_when_it_is_whole(costs: Costs, layer: Layer, backward: bool) -> None:
    experts = costs.backward if backward else costs.forward
    expected = 2 * sum(hop.seconds(layer.message_bytes) for hop in costs.hops) + experts.seconds(layer.pairs)
    assert predict(costs, layer, 1, backward) == pytest.approx(expected)


@given(COST, COST, LAYER, st.sampled_from(DEGREES), st.booleans())
def test_prediction_is_the_one_of_fsmoe_when_there_is_one_link(
    hop: Cost, experts: Cost, layer: Layer, degree: int, backward: bool
) -> None:
    """Pan et al.'s first two cases with nothing gathered inside a node: 2 A2A, or 2 a2a1 + EXP."""
    costs = Costs((hop,), experts, experts, hop)
    one = hop.alpha_s + hop.beta_s * layer.message_bytes / degree
    computing = degree * experts.alpha_s + experts.beta_s * layer.pairs
    hidden = 2 * (degree - 1) * one >= computing
    expected = 2 * degree * one if hidden else 2 * one + computing
    assert predict(costs, layer, degree, backward) == pytest.approx(expected)


@given(COSTS, LAYER, st.sampled_from(DEGREES), st.booleans())
def test_prediction_lies_between_its_busiest_place_and_one_by_one_when_predicted(
    costs: Costs, layer: Layer, degree: int, backward: bool
) -> None:
    tasks = pipeline(costs, layer, degree, backward)
    places = {task.place for task in tasks}
    busiest = max(sum(task.seconds for task in tasks if task.place == place) for place in places)
    found = predict(costs, layer, degree, backward)
    assert busiest <= found * (1 + 1e-9)
    assert found <= sum(task.seconds for task in tasks) * (1 + 1e-9)
    alone = replace(costs, overlap=0.0)
    assert predict(alone, layer, degree, backward) == pytest.approx(sum(task.seconds for task in tasks))


@given(COSTS, LAYER)
def test_chosen_degree_is_the_fastest_when_all_are_predicted(costs: Costs, layer: Layer) -> None:
    chosen = choose_degree(costs, layer)
    together = {d: predict(costs, layer, d, False) + predict(costs, layer, d, True) for d in DEGREES}
    if sum(hop.seconds(layer.message_bytes) for hop in costs.hops) < 1e-3:
        assert chosen == 1
    else:
        assert chosen == 1 or chosen <= layer.tokens
        assert together[chosen] == min(together[d] for d in DEGREES if d == 1 or d <= layer.tokens)


def test_layer_is_whole_when_nothing_is_hidden() -> None:
    costs = Costs((Cost(1e-3, 1e-8),), Cost(1e-3, 1e-5), Cost(1e-3, 2e-5), Cost(1e-3, 1e-8))
    layer = Layer(1024, 4e6, 4096)
    assert choose_degree(costs, layer) == 4
    assert choose_degree(replace(costs, overlap=0.0), layer) == 1
    # Chunks that cost as much as the whole.
    assert choose_degree(replace(costs, hops=(Cost(0.1, 0.0),), forward=Cost(1.0, 0.0)), layer) == 1


@given(COSTS, st.lists(LAYER, max_size=5), st.sampled_from(DEGREES))
def test_released_gradients_are_there_and_fit_when_planned(costs: Costs, layers: list[Layer], degree: int) -> None:
    planned = plan_gradients(costs, layers, [degree] * len(layers))
    there = released = 0
    for layer, num_bytes in zip(reversed(layers), reversed(planned), strict=True):
        there, released = there + layer.gradient_bytes, released + num_bytes
        assert num_bytes >= 0
        assert released <= there
        if num_bytes:
            whole = predict(costs, layer, degree, True) + costs.backward.beta_s * layer.dense_pairs
            assert costs.reduce.seconds(num_bytes) <= whole * (1 + 1e-9) + 1e-9


@given(COSTS, st.lists(LAYER, min_size=1, max_size=5))
def test_schedule_is_the_shorter_of_both_when_chosen(costs: Costs, layers: list[Layer]) -> None:
    schedule = choose_schedule(costs, layers)
    at_once = Schedule(schedule.degrees)
    assert predict_backward(costs, layers, schedule) <= predict_backward(costs, layers, at_once)
    if 1 in schedule.degrees:
        assert schedule == at_once


def test_gradients_wait_for_idle_links_when_messages_would_wait_for_them() -> None:
    costs = Costs((Cost(1e-3, 1e-8),), Cost(1e-3, 1e-5), Cost(1e-3, 2e-5), Cost(1e-3, 1e-8))
    layers = [Layer(1024, 4e6, 4096, 1000, 1_000_000)] * 3
    schedule = choose_schedule(costs, layers)
    assert schedule.released_bytes == (1_000_000,) * 3
    assert predict_backward(costs, layers, schedule) < predict_backward(costs, layers, Schedule(schedule.degrees))


def test_gradients_leave_in_whole_buckets_when_predicted() -> None:
    costs = Costs((Cost(0.0, 0.0),), Cost(0.0, 0.0), Cost(0.0, 0.0), Cost(1.0, 0.0), overlap=0.0)
    layers = [Layer(8, 8.0, 8.0, 0.0, 5)] * 4

    def messages(released: tuple[int, ...] | None, bucket_bytes: int) -> float:
        """Return the number of sums: nothing else takes time, and each takes a second."""
        return predict_backward(costs, layers, Schedule((1,) * 4, released), bucket_bytes)

    assert messages(None, 1) == 4.0
    # Full after two, after three (4 are left), after four; 2 are left for the end.
    assert messages(None, 6) == 4.0
    # Full after four only.
    assert messages(None, 20) == 1.0
    assert messages(None, 21) == 1.0
    # Three a time: a bucket of five leaves every second time.
    assert messages((3, 3, 3, 3), 5) == 3.0
    assert messages((0, 0, 0, 0), 5) == 1.0


def test_backward_takes_all_its_parts_when_nothing_overlaps() -> None:
    costs = Costs((Cost(1.0, 1.0),), Cost(1.0, 1.0), Cost(1.0, 2.0), Cost(1.0, 1.0), overlap=0.0)
    layers = [Layer(8, 8.0, 8.0, 3.0, 5), Layer(8, 8.0, 8.0, 3.0, 7)]
    # Two mixtures of two messages and experts, what is dense, and two sums.
    expected = 2 * (2 * 9.0 + 17.0) + 2 * 6.0 + (1.0 + 7) + (1.0 + 5)
    assert predict_backward(costs, layers, Schedule((1, 1))) == pytest.approx(expected)
    # All of it at the end: one sum of twelve.
    assert predict_backward(costs, layers, Schedule((1, 1), (0, 0))) == pytest.approx(expected - 1.0)


@given(st.floats(1e-6, 1e-2), st.floats(1e-12, 1e-6))
def test_line_is_found_when_times_lie_on_one(alpha: float, beta: float) -> None:
    cost = fit_cost([(work, alpha + beta * work) for work in (1_000, 10_000, 1_000_000)])
    assert cost.seconds(500_000) == pytest.approx(alpha + beta * 500_000, rel=1e-6)
    assert cost.error == pytest.approx(0.0, abs=1e-6)


def test_fit_has_no_negative_part_when_times_have_none() -> None:
    assert fit_cost([(10, 1.0), (20, 3.0), (40, 9.0)]).alpha_s == 0.0
    assert fit_cost([(10, 3.0), (20, 2.0), (40, 1.0)]).beta_s == 0.0
    assert fit_cost([(10, 3.0)]).seconds(10) == pytest.approx(3.0)
    assert fit_cost([(10, 1.0), (20, 3.0), (40, 9.0)]).error > 0.05
    assert Cost(1.0, 2.0).seconds(0) == 0.0
    assert Cost(1.0, 2.0).work(0.5) == 0.0
    assert Cost(1.0, 2.0).work(5.0) == 2.0
