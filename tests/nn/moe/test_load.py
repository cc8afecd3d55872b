"""Measures of the expert load, by hand."""

import math

import pytest
import torch

from moesaic.nn.moe.load import ExpertLoad, merge_loads


def _load(counts: list[int], dropped: int = 0) -> ExpertLoad:
    return ExpertLoad(torch.tensor(counts), torch.tensor(dropped))


def test_load_measures_are_those_of_an_even_load_when_counts_are_equal() -> None:
    load = _load([3, 3, 3, 3])
    assert load.shares_E.tolist() == [0.25] * 4
    assert load.max_violation == 0.0
    assert load.entropy == pytest.approx(1.0)
    assert load.dead_experts == 0
    assert load.dropped_share == 0.0


def test_load_measures_are_those_of_collapse_when_one_expert_takes_all() -> None:
    load = _load([0, 8, 0, 0])
    assert load.max_violation == 3.0
    assert load.entropy == 0.0
    assert load.dead_experts == 3


def test_load_measures_equal_the_sums_by_hand_when_counts_differ() -> None:
    load = _load([4, 2, 2, 0], dropped=2)
    assert load.max_violation == pytest.approx((4 - 2) / 2)
    assert load.entropy == pytest.approx(1.5 * math.log(2) / math.log(4))
    assert load.dead_experts == 1
    assert load.dropped_share == 0.25


def test_load_measures_are_even_when_nothing_was_routed() -> None:
    load = _load([0, 0])
    assert load.shares_E.tolist() == [0.5, 0.5]
    assert load.max_violation == 0.0
    assert load.dropped_share == 0.0


def test_entropy_is_one_when_there_is_one_expert() -> None:
    assert _load([7]).entropy == 1.0


def test_loads_add_up_layer_by_layer_when_merged() -> None:
    merged = merge_loads([{1: _load([1, 0], 1), 3: _load([0, 2])}, {1: _load([2, 2]), 3: _load([5, 0], 4)}])
    assert merged[1].tokens_per_expert_E.tolist() == [3, 2]
    assert merged[3].tokens_per_expert_E.tolist() == [5, 2]
    assert [int(merged[layer].num_dropped) for layer in (1, 3)] == [1, 4]
