"""The mixture of experts of every token: gather, gated MLPs, weighted sum, in one operation.

It equals `permute`, `expert_mlp` and `combine` one after another, which is what runs where no kernel fuses them.
"""

import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.backend import choose_backend, load_gpu_module
from moesaic.ops.cpu import mixture as compiled
from moesaic.ops.expert_mlp import check_expert_mlp, expert_mlp
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import combine, permute
from moesaic.ops.tensor import check_tensor


def mix_experts(
    hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor, permutation: Permutation
) -> Tensor:
    """Return [T, D]: for each token, the sum over its pairs of weight times expert output; zero without pairs.

    Args:
        hidden_TD: [T, D] of any floating dtype.
        weights_N: [N] routing weights in the order of the pairs, of any floating dtype.
        gate_up: [E, 2F, D] of the dtype of hidden_TD: gate rows, then up rows.
        down: [E, D, F].
        permutation: from `group_by_expert`.

    Raises:
        UnsupportedError: a tensor has another shape, dtype or device.
    """
    check_expert_mlp("hidden_TD", hidden_TD, gate_up, down)
    sizes = {"token_ids_N": None, "inverse_N": len(permutation.token_ids_N)}
    sizes |= {"starts_T": len(hidden_TD), "counts_E": len(gate_up)}
    for name, size in sizes.items():
        tensor = getattr(permutation, name)
        check_tensor(f"permutation.{name}", tensor, (size,), torch.int64, hidden_TD.device)
    check_tensor("weights_N", weights_N, (sizes["inverse_N"],), device=hidden_TD.device)
    if not weights_N.is_floating_point():
        raise UnsupportedError(f"weights_N holds {weights_N.dtype}", "give it in a floating dtype")
    backend = choose_backend("mix_experts", hidden_TD, weights_N, gate_up, down)
    if backend == "triton":
        return load_gpu_module("mixture").mix_experts(hidden_TD, weights_N, gate_up, down, permutation)
    if backend == "compiled":
        routing = permutation.counts_E, permutation.token_ids_N, permutation.inverse_N, permutation.starts_T
        return compiled.mix_experts(hidden_TD, weights_N, gate_up, down, *routing)
    rows_ND = permute(hidden_TD, permutation)
    return combine(expert_mlp(rows_ND, gate_up, down, permutation.counts_E), weights_N, permutation)
