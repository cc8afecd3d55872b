"""The whole mixture on kernels and grouped products, against one row at a time."""

import torch
from torch import Tensor

from moesaic.ops.gpu.mixture import expert_mlp, mix_experts
from moesaic.ops.gpu.route import group_by_expert
from moesaic.ops.reference import expert_mlp as mlp_oracle
from moesaic.ops.reference import permute as oracle
from moesaic.testing.tolerance import TOLERANCES, is_close, relative_error
from tests.ops.gpu.cases import Pairs, draw_pairs, each_small_case
from tests.ops.gpu.device import DEVICE, draw, each_dtype, in_float64


def _draw_inputs(pairs: Pairs, dtype: torch.dtype, width: int = 16, hidden_width: int = 24) -> list[Tensor]:
    gate_up = draw(pairs.num_experts, 2 * hidden_width, width, dtype=dtype)
    down = draw(pairs.num_experts, width, hidden_width, dtype=dtype)
    weights_N = draw(len(pairs.token_ids_N), dtype=torch.float32)
    # As if a norm stood before them and the weights were initialised: values near one all the way.
    scaled = [gate_up.detach() / width**0.5, down.detach() / hidden_width**0.5]
    return [draw(pairs.num_tokens, width, dtype=dtype), weights_N, *(each.requires_grad_() for each in scaled)]


def _expected(pairs: Pairs, hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    where = pairs.token_ids_N, pairs.expert_ids_N
    counts_E = torch.bincount(pairs.expert_ids_N, minlength=pairs.num_experts)
    rows_ND = oracle.permute(hidden_TD, *where, pairs.num_experts)
    return oracle.combine(mlp_oracle.expert_mlp(rows_ND, gate_up, down, counts_E), weights_N, *where, pairs.num_tokens)


@each_small_case
@each_dtype
def test_mixture_and_its_gradients_equal_the_oracles_when_routing_is(case, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    pairs = case()
    inputs = _draw_inputs(pairs, dtype)
    found = mix_experts(*inputs, group_by_expert(*pairs.to(DEVICE)))
    steepness_TD = torch.randn(found.shape).to(dtype)
    gradients = torch.autograd.grad(found, inputs, steepness_TD.to(DEVICE))
    assert found.dtype == dtype
    if len(pairs.token_ids_N) == 0:
        assert not any(each.any() for each in (found, *gradients))
        return
    leaves = in_float64(*inputs)
    expected = _expected(pairs, *leaves)
    assert is_close(found.cpu(), expected)
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, leaves, steepness_TD.double()), strict=True):
        # The gradient of float32 weights comes from rows of the narrow dtype, and is as exact as they are.
        assert relative_error(mine.cpu(), theirs) <= TOLERANCES[dtype]


def test_experts_take_the_gradient_of_a_plain_sum_when_nothing_weighs_it() -> None:
    pairs = draw_pairs(5, 3, 2)
    gate_up, down = _draw_inputs(pairs, torch.float32)[2:]
    rows_ND = draw(10, 16, dtype=torch.float32)
    counts_E = torch.bincount(pairs.expert_ids_N, minlength=3).to(DEVICE)
    (found,) = torch.autograd.grad(expert_mlp(rows_ND, gate_up, down, counts_E).sum(), rows_ND)
    leaves = in_float64(rows_ND, gate_up, down)
    (expected,) = torch.autograd.grad(mlp_oracle.expert_mlp(*leaves, counts_E.cpu()).sum(), leaves[0])
    assert is_close(found.cpu(), expected)
