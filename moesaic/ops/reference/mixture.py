"""Oracle of `ops/mixture.py`: one pair at a time, differentiable by autograd."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def mix_experts(
    hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor, chosen: Sequence[Sequence[int]]
) -> Tensor:
    """Add to every token's zero, for each expert it chose, weight times the expert's output; pairs in token order."""
    width = down.shape[2]
    out, pair = [], 0
    for hidden_D, experts in zip(hidden_TD, chosen, strict=True):
        sum_D = torch.zeros_like(hidden_D)
        for expert in experts:
            gate_F = gate_up[expert, :width] @ hidden_D
            up_F = gate_up[expert, width:] @ hidden_D
            sum_D = sum_D + weights_N[pair] * (down[expert] @ (functional.silu(gate_F) * up_F))
            pair += 1
        out.append(sum_D)
    return torch.stack(out) if out else hidden_TD[:0]
