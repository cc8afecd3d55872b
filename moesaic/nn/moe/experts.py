"""The weights of all experts of a layer."""

import torch
from torch import Tensor, nn

from moesaic.ops.expert_mlp import expert_mlp


class Experts(nn.Module):
    """E gated MLPs, stacked: gate_up [E, 2F, D] (gate rows first) and down [E, D, F]."""

    def __init__(self, num_experts: int, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * hidden_width, width))
        self.down = nn.Parameter(torch.empty(num_experts, width, hidden_width))

    def forward(self, rows_ND: Tensor, counts_E: Tensor) -> Tensor:
        """Apply expert e to its counts_E[e] rows; rows are grouped by expert."""
        return expert_mlp(rows_ND, self.gate_up.to(rows_ND.dtype), self.down.to(rows_ND.dtype), counts_E)
