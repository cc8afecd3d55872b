"""The mixture of experts of every token: gather, gated MLPs, weighted sum, in one operation.

It equals `permute`, `expert_mlp` and `combine` one after another, which is what runs where no kernel fuses them.
"""

from torch import Tensor

from moesaic.ops.backend import choose_backend, load_gpu_module
from moesaic.ops.cpu import mixture as compiled
from moesaic.ops.expert_mlp import check_expert_mlp, expert_mlp
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import as_permutation, check_routing, combine, permute


def mix_experts(
    hidden_TD: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, routing: Permutation | Tensor
) -> Tensor:
    """Return [T, D]: for each token, the sum over its pairs of weight times expert output; zero without pairs.

    Args:
        hidden_TD: [T, D] of any floating dtype.
        weights: routing weights of any floating dtype, [N] in the order of the pairs, or as the ids, [T, K].
        gate_up: [E, 2F, D] of the dtype of hidden_TD: gate rows, then up rows.
        down: [E, D, F].
        routing: from `group_by_expert`; or, where every token has K experts, their ids, int64 [T, K].

    Raises:
        UnsupportedError: a tensor has another shape, dtype or device.
    """
    check_expert_mlp("hidden_TD", hidden_TD, gate_up, down)
    check_routing(routing, weights, len(hidden_TD), len(gate_up), hidden_TD.device)
    backend = choose_backend("mix_experts", hidden_TD, weights, gate_up, down)
    if backend == "compiled":
        return compiled.mix_experts(hidden_TD, weights, gate_up, down, routing)
    permutation = as_permutation(routing, len(gate_up))
    weights_N = weights.flatten()
    if backend == "triton":
        return load_gpu_module("mixture").mix_experts(hidden_TD, weights_N, gate_up, down, permutation)
    rows_ND = permute(hidden_TD, permutation)
    return combine(expert_mlp(rows_ND, gate_up, down, permutation.counts_E), weights_N, permutation)
