"""Oracle of `ops/norm.py`: one row at a time, differentiable by autograd."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide every row by the root of its mean square, and scale it."""
    rows = [row / torch.sqrt((row * row).mean() + eps) * weight for row in x.reshape(-1, x.shape[-1])]
    return torch.stack(rows).view(x.shape) if rows else x
