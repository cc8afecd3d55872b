"""Oracle of `ops/expert_mlp.py`: one row at a time, differentiable by autograd."""

import torch
from torch import Tensor
from torch.nn import functional


def expert_mlp(rows_ND: Tensor, gate_up: Tensor, down: Tensor, counts_E: Tensor) -> Tensor:
    """Apply to every row the expert whose run it stands in."""
    owner_N = torch.repeat_interleave(torch.arange(len(counts_E)), counts_E)
    width = down.shape[2]
    out = []
    for row_D, expert in zip(rows_ND, owner_N.tolist(), strict=True):
        gate_F = gate_up[expert, :width] @ row_D
        up_F = gate_up[expert, width:] @ row_D
        out.append(down[expert] @ (functional.silu(gate_F) * up_F))
    return torch.stack(out) if out else rows_ND[:0]
