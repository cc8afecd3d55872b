"""Rows moved by the kernels: values exactly where nothing is added, then sums, then gradients."""

import pytest
import torch
from torch import Tensor

from moesaic.ops.gpu.permute import combine, permute
from moesaic.ops.permute import group_by_expert
from moesaic.ops.reference import permute as oracle
from moesaic.testing.tolerance import is_close
from tests.ops.gpu.cases import draw_pairs, each_case
from tests.ops.gpu.device import DEVICE, draw, each_dtype, in_float64

# One column, fewer than a tile and no power of two, and two tiles of which the second is nearly empty.
each_width = pytest.mark.parametrize("width", [1, 20, 1027])


def _gradients(out: Tensor, inputs: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return the gradients of a weighted sum of everything, the same weights each time."""
    steepness = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return torch.autograd.grad(out, inputs, steepness.to(out))


@each_case
@each_dtype
def test_permute_equals_the_oracle_bit_for_bit_when_routing_is(case, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    pairs = case()
    hidden_TD = draw(pairs.num_tokens, 20, dtype=dtype)
    found = permute(hidden_TD, group_by_expert(*pairs.to(DEVICE)))
    expected = oracle.permute(hidden_TD.detach().cpu(), pairs.token_ids_N, pairs.expert_ids_N, pairs.num_experts)
    assert torch.equal(found.cpu(), expected)


@each_case
@each_dtype
def test_combine_and_its_gradients_equal_the_oracle_when_routing_is(case, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    _check_combine(case(), 20, dtype)


@each_width
@each_dtype
def test_combine_and_its_gradients_equal_the_oracle_when_width_is(width: int, dtype: torch.dtype) -> None:
    _check_combine(draw_pairs(6, 5, 3), width, dtype)


def _check_combine(pairs, width: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    num_pairs = len(pairs.token_ids_N)
    rows_ND, weights_N = draw(num_pairs, width, dtype=dtype), draw(num_pairs, dtype=torch.float32)
    found = combine(rows_ND, weights_N, group_by_expert(*pairs.to(DEVICE)))
    gradients = _gradients(found, [rows_ND, weights_N], dtype)
    assert found.shape == (pairs.num_tokens, width)
    assert [each.dtype for each in (found, *gradients)] == [dtype, dtype, torch.float32]
    if num_pairs == 0:
        assert not found.any()
        return
    leaves = in_float64(rows_ND, weights_N)
    expected = oracle.combine(*leaves, pairs.token_ids_N, pairs.expert_ids_N, pairs.num_tokens)
    assert is_close(found.cpu(), expected)
    for mine, theirs in zip(gradients, _gradients(expected, leaves, dtype), strict=True):
        assert is_close(mine.cpu(), theirs)


@each_case
@each_dtype
def test_permute_gradient_equals_the_oracle_when_routing_is(case, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    _check_permute_gradient(case(), 20, dtype)


@each_width
@each_dtype
def test_permute_gradient_equals_the_oracle_when_width_is(width: int, dtype: torch.dtype) -> None:
    _check_permute_gradient(draw_pairs(6, 5, 3), width, dtype)


def _check_permute_gradient(pairs, width: int, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    hidden_TD = draw(pairs.num_tokens, width, dtype=dtype)
    (found,) = _gradients(permute(hidden_TD, group_by_expert(*pairs.to(DEVICE))), [hidden_TD], dtype)
    if len(pairs.token_ids_N) == 0:
        assert not found.any()
        return
    leaves = in_float64(hidden_TD)
    expected = oracle.permute(*leaves, pairs.token_ids_N, pairs.expert_ids_N, pairs.num_experts)
    (theirs,) = _gradients(expected, leaves, dtype)
    assert is_close(found.cpu(), theirs)


def test_combine_adds_in_float32_when_rows_are_float16() -> None:
    # 2048 + 1 is 2048 in float16, however often one is added.
    pairs = draw_pairs(1, 65, 65)
    rows_ND = torch.ones(65, 3, dtype=torch.float16, device=DEVICE)
    permutation = group_by_expert(*pairs.to(DEVICE))
    rows_ND[permutation.inverse_N[0]] = 2048
    weights_N = torch.ones(65, device=DEVICE)
    assert combine(rows_ND, weights_N, permutation).tolist() == [[2112.0] * 3]


def test_movement_reads_the_right_numbers_when_inputs_are_views() -> None:
    pairs = draw_pairs(4, 3, 2)
    permutation = group_by_expert(*pairs.to(DEVICE))
    hidden_DT, weights = draw(5, 4, dtype=torch.float32), draw(8, 2, dtype=torch.float32)
    rows_ND = permute(hidden_DT.t(), permutation)
    assert torch.equal(rows_ND, hidden_DT.t()[permutation.token_ids_N])
    found = combine(rows_ND, weights[:, 1], permutation)
    assert torch.equal(found, combine(rows_ND, weights[:, 1].contiguous(), permutation))
    # The gradient of a sum is one number seen everywhere.
    (grad_DT,) = torch.autograd.grad(rows_ND.sum(), hidden_DT)
    assert grad_DT.tolist() == [[2.0] * 4] * 5


def test_second_derivatives_are_refused_when_asked_for() -> None:
    pairs = draw_pairs(2, 3, 2)
    hidden_TD = draw(2, 4, dtype=torch.float32)
    rows_ND = permute(hidden_TD, group_by_expert(*pairs.to(DEVICE)))
    (grad_TD,) = torch.autograd.grad((rows_ND**2).sum(), hidden_TD, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_TD.sum().backward()
