"""Filters and draws of the next token."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.ops.reference import sample as oracle
from moesaic.ops.sample import draw, filter_logits, greedy

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def _kept(top_k: int | None = None, top_p: float | None = None, min_p: float | None = None) -> list[int]:
    filtered_V = filter_logits(LOGITS, 1.0, top_k, top_p, min_p)
    return [token for token, value in enumerate(filtered_V.tolist()) if value > -math.inf]


def test_filter_keeps_everything_when_no_limit_is_set() -> None:
    assert _kept() == [0, 1, 2, 3]
    assert _kept(top_k=9, top_p=1.0, min_p=0.0) == [0, 1, 2, 3]


def test_filter_divides_logits_when_temperature_is_set() -> None:
    assert torch.equal(filter_logits(LOGITS, 0.5, None, None, None), LOGITS * 2)


def test_filter_keeps_the_lower_id_when_top_k_cuts_a_tie() -> None:
    kept_V = filter_logits(torch.tensor([1.0, 2.0, 1.0, 1.0]), 1.0, 2, None, None)
    assert kept_V.tolist() == [1.0, 2.0, -math.inf, -math.inf]


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, [0]), (0.51, [0, 1]), (0.76, [0, 1, 2]), (0.95, [0, 1, 2, 3])])
def test_filter_keeps_the_fewest_tokens_that_reach_when_top_p_is(top_p: float, kept: list[int]) -> None:
    assert _kept(top_p=top_p) == kept


@pytest.mark.parametrize(("min_p", "kept"), [(1.0, [0]), (0.45, [0, 1]), (0.25, [0, 1, 2])])
def test_filter_keeps_shares_of_the_best_when_min_p_is(min_p: float, kept: list[int]) -> None:
    assert _kept(min_p=min_p) == kept


def test_filter_measures_top_p_among_what_top_k_left_when_both_are_set() -> None:
    # Of 0.5 and 0.25 alone the first holds two thirds.
    assert _kept(top_k=2, top_p=0.66) == [0]
    assert _kept(top_k=2, top_p=0.67) == [0, 1]


@st.composite
def _draw_filters(draw: st.DrawFn) -> tuple[float, int | None, float | None, float | None]:
    return (
        draw(st.sampled_from([0.25, 1.0, 3.0])),
        draw(st.none() | st.integers(1, 14)),
        draw(st.none() | st.floats(0.05, 0.95)),
        draw(st.none() | st.floats(0.01, 0.9)),
    )


def _is_on_an_edge(logits_V: Tensor, filters: tuple[float, int | None, float | None, float | None]) -> bool:
    """Tell whether rounding could move a token over a limit."""
    temperature, top_k, top_p, min_p = filters
    near = [
        oracle.filter_logits(logits_V, temperature, top_k, top_p and top_p * factor, min_p and min_p * factor)
        for factor in (1, 1 - 1e-4, 1 + 1e-4)
    ]
    return not all(torch.equal(each, near[0]) for each in near)


@given(
    logits=st.lists(st.integers(-8, 8).map(float), min_size=2, max_size=12),
    filters=_draw_filters(),
)
def test_filters_leave_what_the_oracle_leaves_when_drawn_at_random(
    logits: list[float], filters: tuple[float, int | None, float | None, float | None]
) -> None:
    logits_V = torch.tensor(logits)
    assume(not _is_on_an_edge(logits_V, filters))
    torch.testing.assert_close(filter_logits(logits_V, *filters), oracle.filter_logits(logits_V, *filters))


@given(rows=st.lists(st.lists(st.integers(-2, 2).map(float), min_size=3, max_size=3), min_size=1, max_size=4))
def test_greedy_equals_the_oracle_when_logits_tie(rows: list[list[float]]) -> None:
    assert torch.equal(greedy(torch.tensor(rows)), oracle.greedy(torch.tensor(rows)))


def test_greedy_takes_the_lower_id_when_logits_tie() -> None:
    assert greedy(torch.tensor([[0.0, 1.0, 1.0], [2.0, -1.0, 2.0]])).tolist() == [1, 0]


def test_draw_gives_a_row_the_same_tokens_when_it_stands_in_a_batch() -> None:
    logits_BV = torch.randn(3, 50)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]

    together = draw(logits_BV, generators())
    alone = [draw(logits_BV[row : row + 1], [generators()[row]]) for row in range(3)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_draw_follows_the_probabilities_when_repeated() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.cat([draw(LOGITS.unsqueeze(0), [generator]) for _ in range(2000)])
    shares = torch.bincount(tokens, minlength=4) / 2000
    assert float((shares - LOGITS.exp()).abs().max()) < 0.04


def test_draw_never_takes_a_token_when_it_is_excluded() -> None:
    logits_BV = filter_logits(LOGITS, 1.0, 1, None, None).unsqueeze(0)
    generator = torch.Generator().manual_seed(0)
    assert {int(draw(logits_BV, [generator])) for _ in range(50)} == {0}
