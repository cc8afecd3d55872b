"""The mixture of experts of every token: gather, grouped product, gate, grouped product, weighted sum.

Nothing of it asks the host: the products take the ends of the experts' runs from device memory.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.ops.gpu.permute import combine, permute
from moesaic.ops.gpu.swiglu import swiglu
from moesaic.ops.permutation import Permutation


def expert_mlp(rows_ND: Tensor, gate_up: Tensor, down: Tensor, counts_E: Tensor) -> Tensor:
    """Apply expert e to the e-th run of counts_E[e] rows.

    Args:
        rows_ND: [N, D], grouped by expert.
        gate_up: [E, 2F, D] of the same dtype: gate rows, then up rows.
        down: [E, D, F].
        counts_E: int64 with sum N; zeros are fine.

    Returns:
        [N, D]. Memory: N (3F + D) elements, of which N (3F) live until the backward pass.
    """
    ends_E = counts_E.cumsum(0).to(torch.int32)
    hidden_N2F = functional.grouped_mm(rows_ND, gate_up.transpose(1, 2), offs=ends_E)
    out_ND = functional.grouped_mm(swiglu(hidden_N2F), down.transpose(1, 2), offs=ends_E)
    if out_ND.requires_grad:
        # The gradient of a plain sum is one number seen everywhere, a layout that the products refuse.
        out_ND.register_hook(Tensor.contiguous)
    return out_ND


def mix_experts(
    hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor, permutation: Permutation
) -> Tensor:
    """Return [T, D]: for each token, the sum over its pairs of weight times expert output; zero without pairs.

    Args:
        hidden_TD: [T, D] of float32, float16 or bfloat16.
        weights_N: [N] routing weights in the order of the pairs, of any of these dtypes; applied in float32.
        gate_up: [E, 2F, D] of the dtype of hidden_TD: gate rows, then up rows.
        down: [E, D, F].
        permutation: from `group_by_expert`.
    """
    rows_ND = permute(hidden_TD, permutation)
    return combine(expert_mlp(rows_ND, gate_up, down, permutation.counts_E), weights_N, permutation)
