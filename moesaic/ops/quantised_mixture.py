"""The mixture of experts with low-bit weights: inference only.

Rows are quantised and multiplied as `quantised_linear` says. silu(gate) * up is float32, quantised the same way, row by
row, and multiplied with down. So a row's result depends on that row alone, and backends differ by the last bits of
silu and of the sum over a token's experts. A row that holds NaN or infinity gives NaN.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.ops.backend import choose_backend
from moesaic.ops.cpu import quantised_mixture as compiled
from moesaic.ops.expert_mlp import list_counts, list_runs
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import as_permutation, check_routing, combine, permute
from moesaic.ops.quant import QuantisedExperts, integers_of
from moesaic.ops.quantised_linear import check_token_dtype, multiply_integers
from moesaic.ops.tensor import check_no_gradients, check_tensor


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
    check_tokens("hidden_TD", hidden_TD, experts)
    check_routing(routing, weights, len(hidden_TD), experts.num_experts, hidden_TD.device)
    check_no_gradients("quantised experts", hidden_TD, weights)
    if choose_backend("mix_experts_quantised", hidden_TD) == "compiled":
        return compiled.mix_experts_quantised(hidden_TD, weights, experts, routing)
    return _mix_in_torch(hidden_TD, weights.flatten(), experts, as_permutation(routing, experts.num_experts))


def check_tokens(name: str, tokens_TD: Tensor, experts: QuantisedExperts) -> None:
    """Check tokens, called `name` by the caller, against quantised experts.

    Raises:
        UnsupportedError: the shape, dtype or device is another.
    """
    check_token_dtype(name, tokens_TD)
    check_tensor(name, tokens_TD, (None, experts.width), device=experts.gate_up.device)


def apply_quantised_expert(rows_ND: Tensor, experts: QuantisedExperts, expert: int) -> Tensor:
    """Return [N, D]: one expert of its rows, [N, D], in torch."""
    gate_up, down = integers_of(experts, expert)
    gate, up = multiply_integers(rows_ND.float(), gate_up).chunk(2, dim=1)
    return multiply_integers(functional.silu(gate) * up, down).to(rows_ND.dtype)


def _mix_in_torch(hidden_TD: Tensor, weights_N: Tensor, experts: QuantisedExperts, permutation: Permutation) -> Tensor:
    rows_ND = permute(hidden_TD, permutation)
    out_ND = torch.empty_like(rows_ND)
    for expert, run in list_runs(list_counts(permutation.counts_E, len(rows_ND))):
        out_ND[run] = apply_quantised_expert(rows_ND[run], experts, expert)
    return combine(out_ND, weights_N, permutation)
