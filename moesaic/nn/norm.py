"""Norms."""

import torch
from torch import Tensor, nn

from moesaic.ops.norm import rms_norm


class RmsNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last dim."""
        return rms_norm(x, self.weight, self.eps)
