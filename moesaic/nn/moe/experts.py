"""The weights of all experts of a layer; a dispatcher brings tokens to them."""

import torch
from torch import nn


class Experts(nn.Module):
    """E gated MLPs, stacked: gate_up [E, 2F, D] (gate rows first) and down [E, D, F]."""

    def __init__(self, num_experts: int, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * hidden_width, width))
        self.down = nn.Parameter(torch.empty(num_experts, width, hidden_width))
