"""Rows grouped by expert and brought back: integers exactly, then values, then gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import combine, group_by_expert, permute
from moesaic.ops.reference import permute as oracle
from moesaic.testing.tolerance import is_close

Pairs = tuple[Tensor, Tensor, int, int]


@st.composite
def _draw_pairs(draw: st.DrawFn) -> Pairs:
    """Draw (token ids, expert ids, tokens, experts): any number of different experts for each token."""
    num_tokens, num_experts = draw(st.integers(0, 7)), draw(st.sampled_from([1, 2, 3, 7, 8]))
    experts = st.sets(st.integers(0, num_experts - 1))
    chosen = draw(st.lists(experts, min_size=num_tokens, max_size=num_tokens))
    pairs = [(token, expert) for token, some in enumerate(chosen) for expert in draw(st.permutations(sorted(some)))]
    ids = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    return ids[:, 0].contiguous(), ids[:, 1].contiguous(), num_tokens, num_experts


def _group(pairs: Pairs) -> Permutation:
    return group_by_expert(*pairs)


# One token, all tokens on one expert, K = E with prime E, tokens without experts, and nothing at all.
CASES = {
    "one token": ([0], [2], 1, 4),
    "one expert takes all": ([0, 1, 2], [1, 1, 1], 3, 3),
    "every expert for every token": ([0] * 5 + [1] * 5, [4, 3, 2, 1, 0, 0, 1, 2, 3, 4], 2, 5),
    "tokens without experts": ([1, 1, 3], [2, 0, 0], 5, 3),
    "no rows": ([], [], 3, 2),
    "no tokens": ([], [], 0, 2),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def _as_pairs(case: tuple[list[int], list[int], int, int]) -> Pairs:
    tokens, experts, num_tokens, num_experts = case
    return torch.tensor(tokens, dtype=torch.int64), torch.tensor(experts, dtype=torch.int64), num_tokens, num_experts


@given(pairs=_draw_pairs())
def test_permutation_sorts_by_expert_then_token_when_pairs_are_drawn(pairs: Pairs) -> None:
    tokens, experts, num_tokens, num_experts = pairs
    found = _group(pairs)
    order = sorted(range(len(tokens)), key=lambda pair: (int(experts[pair]), int(tokens[pair])))
    assert found.token_ids_N.tolist() == [int(tokens[pair]) for pair in order]
    assert [order[row] for row in found.inverse_N.tolist()] == list(range(len(tokens)))
    assert found.counts_E.tolist() == [experts.tolist().count(expert) for expert in range(num_experts)]
    assert found.starts_T.tolist() == [int((tokens < token).sum()) for token in range(num_tokens)]


@given(pairs=_draw_pairs())
def test_permute_and_combine_equal_the_oracle_when_pairs_are_drawn(pairs: Pairs) -> None:
    tokens, experts, num_tokens, num_experts = pairs
    hidden_TD, weights_N = torch.randn(num_tokens, 3), torch.rand(len(tokens))
    permutation = _group(pairs)
    rows_ND = permute(hidden_TD, permutation)
    assert torch.equal(rows_ND, oracle.permute(hidden_TD, tokens, experts, num_experts))
    if num_tokens:
        expected = oracle.combine(rows_ND, weights_N, tokens, experts, num_tokens)
        assert is_close(combine(rows_ND, weights_N, permutation), expected)


@each_case
def test_combine_undoes_permute_when_weights_are_shares(case: tuple[list[int], list[int], int, int]) -> None:
    tokens, experts, num_tokens, num_experts = _as_pairs(case)
    permutation = _group((tokens, experts, num_tokens, num_experts))
    hidden_TD = torch.randn(num_tokens, 4)
    per_token = torch.bincount(tokens, minlength=num_tokens)
    weights_N = 1 / per_token[tokens].float()
    back = combine(permute(hidden_TD, permutation), weights_N, permutation)
    assert is_close(back, hidden_TD * (per_token > 0).unsqueeze(1))


@each_case
def test_gradients_of_movement_equal_finite_differences_when_routing_is(
    case: tuple[list[int], list[int], int, int],
) -> None:
    tokens, experts, num_tokens, num_experts = _as_pairs(case)
    permutation = _group((tokens, experts, num_tokens, num_experts))
    hidden_TD = torch.randn(num_tokens, 2, dtype=torch.float64, requires_grad=True)
    rows_ND = torch.randn(len(tokens), 2, dtype=torch.float64, requires_grad=True)
    weights_N = torch.rand(len(tokens), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda hidden: permute(hidden, permutation), [hidden_TD])
    assert torch.autograd.gradcheck(lambda rows, weights: combine(rows, weights, permutation), [rows_ND, weights_N])
    assert torch.autograd.gradcheck(lambda rows: combine(rows, None, permutation), [rows_ND])
    assert torch.equal(combine(rows_ND, None, permutation), combine(rows_ND, torch.ones_like(weights_N), permutation))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_combine_keeps_the_dtype_of_rows_when_weights_are_float32(dtype: torch.dtype) -> None:
    permutation = _group(_as_pairs(CASES["every expert for every token"]))
    rows_ND, weights_N = torch.randn(10, 4).to(dtype), torch.rand(10)
    found = combine(rows_ND, weights_N, permutation)
    assert found.dtype == dtype
    assert is_close(found, combine(rows_ND.float(), weights_N, permutation))
