"""The mixture of experts of every token: gather, gated MLPs, weighted sum, in one operation.

It equals `permute`, `expert_mlp` and `combine` one after another, which is what runs where no kernel fuses them.
"""

from torch import Tensor

from moesaic.ops.expert_mlp import expert_mlp
from moesaic.ops.permute import Permutation, combine, permute


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
    """
    rows_ND = permute(hidden_TD, permutation)
    return combine(expert_mlp(rows_ND, gate_up, down, permutation.counts_E), weights_N, permutation)
