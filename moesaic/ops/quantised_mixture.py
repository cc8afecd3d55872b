"""The mixture of experts with low-bit weights: inference only.

A token is quantised to -127..127 by the largest magnitude of its row; products of integers are summed exactly and only
then scaled, (sum * channel scale) * token scale in float32. silu(gate) * up is float32, quantised the same way, row by
row, and multiplied with down. So a row's result depends on that row alone, and backends differ by the last bits of
silu and of the sum over a token's experts. A row that holds NaN or infinity gives NaN.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.errors import UnsupportedError
from moesaic.ops.backend import choose_backend
from moesaic.ops.cpu import quantised_mixture as compiled
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import as_permutation, check_routing, combine
from moesaic.ops.quant import IntegerMatrix, QuantisedExperts, integers_of
from moesaic.ops.tensor import check_tensor

_MIN_MAGNITUDE = 1e-30  # as in csrc/quant.h


def mix_experts_quantised(
    hidden_TD: Tensor, weights: Tensor, experts: QuantisedExperts, routing: Permutation | Tensor
) -> Tensor:
    """Return [T, D]: for each token, the sum over its pairs of weight times expert output; zero without pairs.

    Args:
        hidden_TD: [T, D] of float32 or bfloat16.
        weights: routing weights of any floating dtype, [N] in the order of the pairs, or as the ids, [T, K].
        experts: from `quantise_experts`.
        routing: from `group_by_expert`; or, where every token has K experts, their ids, int64 [T, K].

    Raises:
        UnsupportedError: a tensor has another shape, dtype or device, or asks for a gradient.
    """
    if hidden_TD.dtype not in (torch.float32, torch.bfloat16):
        raise UnsupportedError(f"hidden_TD holds {hidden_TD.dtype}", "give it as float32 or bfloat16")
    device = experts.gate_up.device
    check_tensor("hidden_TD", hidden_TD, (None, experts.width), device=device)
    check_routing(routing, weights, len(hidden_TD), experts.num_experts, device)
    if torch.is_grad_enabled() and (hidden_TD.requires_grad or weights.requires_grad):
        raise UnsupportedError("quantised experts have no gradients", "call them under torch.no_grad()")
    if choose_backend("mix_experts_quantised", hidden_TD) == "compiled":
        return compiled.mix_experts_quantised(hidden_TD, weights, experts, routing)
    return _mix_in_torch(hidden_TD, weights.flatten(), experts, as_permutation(routing, experts.num_experts))


def _mix_in_torch(hidden_TD: Tensor, weights_N: Tensor, experts: QuantisedExperts, permutation: Permutation) -> Tensor:
    rows_ND, start = hidden_TD.new_empty(len(permutation.token_ids_N), experts.width), 0
    for expert, count in enumerate(permutation.counts_E.tolist()):
        if count == 0:
            continue
        rows = slice(start, start + count)
        gate_up, down = integers_of(experts, expert)
        hidden = hidden_TD[permutation.token_ids_N[rows]].float()
        gate, up = _multiply(hidden, gate_up).chunk(2, dim=1)
        rows_ND[rows] = _multiply(functional.silu(gate) * up, down).to(hidden_TD.dtype)
        start += count
    return combine(rows_ND, weights_N, permutation)


def _multiply(rows: Tensor, matrix: IntegerMatrix) -> Tensor:
    """Quantise rows and multiply; float64 holds every sum exactly."""
    most = rows.abs().amax(1, keepdim=True).clamp_min(_MIN_MAGNITUDE)
    finite = most.isfinite()
    token_scales = torch.where(finite, most / 127, torch.nan)
    integers = torch.where(finite, (rows * (127 / most)).round(), 0.0)
    sums = integers.double() @ matrix.integers.double().t()
    return sums.float() * matrix.scales * token_scales
