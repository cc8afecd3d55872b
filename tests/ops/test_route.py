"""Index arithmetic of routing, exactly equal to loops over lists."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import ConfigError
from moesaic.ops.reference import route as oracle
from moesaic.ops.route import keep_within_capacity, limit_groups, top_k

NUM_EXPERTS = st.sampled_from([1, 2, 3, 7, 8, 13])
# Few different values, so that ties are common; both zeros, which are equal.
TIED = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.25, 3.0])
ANY = st.floats(width=32, allow_nan=False)


@st.composite
def _draw_scores(draw: st.DrawFn) -> Tensor:
    num_rows, num_columns = draw(st.integers(0, 6)), draw(NUM_EXPERTS)
    values = st.lists(draw(st.sampled_from([TIED, ANY])), min_size=num_columns, max_size=num_columns)
    rows = draw(st.lists(values, min_size=num_rows, max_size=num_rows))
    return torch.tensor(rows, dtype=torch.float32).view(num_rows, num_columns)


@given(scores_TE=_draw_scores(), data=st.data())
def test_top_k_equals_a_stable_sort_when_scores_tie(scores_TE: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, scores_TE.shape[1]))
    assert torch.equal(top_k(scores_TE, k), oracle.top_k(scores_TE, k))


def test_top_k_takes_the_lowest_ids_when_all_scores_are_equal() -> None:
    assert top_k(torch.zeros(2, 257), 5).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_top_k_takes_nan_first_when_its_sign_is_set() -> None:
    infinity = torch.tensor(math.inf)
    for nan in (torch.tensor(math.nan), infinity - infinity, -torch.tensor(math.nan)):
        scores_TE = torch.tensor([[1.0, 0.0, math.inf]])
        scores_TE[0, 1] = nan
        assert top_k(scores_TE, 2).tolist() == [[1, 2]]


def test_top_k_takes_minus_infinity_last_when_k_is_all() -> None:
    assert top_k(torch.tensor([[-math.inf, -3e38, 0.0]]), 3).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_is_refused_when_k_is_outside_the_columns(k: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot choose {k} of 3 columns") as caught:
        top_k(torch.zeros(1, 3), k)
    assert caught.value.hint == "k must lie within 1..3"


@given(num_tokens=st.integers(0, 6), num_groups=st.sampled_from([1, 2, 3]), size=st.integers(1, 4), data=st.data())
def test_groups_equal_the_oracle_when_scores_tie(
    num_tokens: int, num_groups: int, size: int, data: st.DataObject
) -> None:
    num_chosen, num_best = data.draw(st.integers(1, num_groups)), data.draw(st.sampled_from([1, 2]))
    width = num_groups * size
    row = st.lists(TIED, min_size=width, max_size=width)
    rows = data.draw(st.lists(row, min_size=num_tokens, max_size=num_tokens))
    scores_TE = torch.tensor(rows, dtype=torch.float32).view(num_tokens, width)
    expected = oracle.limit_groups(scores_TE, num_groups, num_chosen, num_best).view(num_tokens, width)
    assert torch.equal(limit_groups(scores_TE, num_groups, num_chosen, num_best), expected)


def test_groups_keep_the_best_pair_when_two_scores_stand_for_a_group() -> None:
    scores_TE = torch.tensor([[9.0, 0.0, 5.0, 5.0]])
    assert limit_groups(scores_TE, 2, 1, 1).tolist() == [[9.0, 0.0, -math.inf, -math.inf]]
    assert limit_groups(scores_TE, 2, 1, 2).tolist() == [[-math.inf, -math.inf, 5.0, 5.0]]


@given(data=st.data(), num_experts=NUM_EXPERTS, num_tokens=st.integers(0, 12), capacity=st.integers(1, 6))
def test_capacity_equals_filling_lists_when_choices_are_drawn(
    data: st.DataObject, num_experts: int, num_tokens: int, capacity: int
) -> None:
    num_choices = data.draw(st.integers(1, num_experts))
    ids_TK = torch.tensor(
        [data.draw(st.permutations(range(num_experts)))[:num_choices] for _ in range(num_tokens)]
    ).view(num_tokens, num_choices)
    flags = data.draw(st.lists(st.booleans(), min_size=ids_TK.numel(), max_size=ids_TK.numel()))
    kept_TK = torch.tensor(flags, dtype=torch.bool).view(ids_TK.shape)
    found = keep_within_capacity(ids_TK.long(), kept_TK, num_experts, capacity)
    assert torch.equal(found, oracle.keep_within_capacity(ids_TK, kept_TK, num_experts, capacity))


def test_capacity_serves_first_choices_before_second_ones_when_room_is_short() -> None:
    expert_ids_TK = torch.tensor([[0, 1], [1, 0], [1, 0]])
    kept_TK = keep_within_capacity(expert_ids_TK, torch.ones(3, 2, dtype=torch.bool), 2, 2)
    assert kept_TK.tolist() == [[True, False], [True, True], [True, False]]


def test_capacity_gives_no_room_to_choices_already_dropped_when_they_come_first() -> None:
    expert_ids_TK = torch.tensor([[0], [0], [0]])
    dropped_first = torch.tensor([[False], [True], [True]])
    assert keep_within_capacity(expert_ids_TK, dropped_first, 1, 1).tolist() == [[False], [True], [False]]
