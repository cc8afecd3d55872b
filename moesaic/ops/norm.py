"""Root-mean-square norm (Zhang and Sennrich, 2019, "Root Mean Square Layer Normalization", equation 4).

The forward pass keeps one number per row besides its input; the backward pass is written out, because
autograd's chain through the single operations makes several times as many passes over memory.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row to unit mean square, then by `weight`.

    Args:
        x: [..., D] of any floating dtype; the mean is taken in float32, or float64 for float64.
        weight: [D] of any floating dtype.

    Returns:
        The shape and dtype of x.
    """
    if not torch.is_grad_enabled():  # what torch does around a function with a gradient costs one row most of its time
        return _scale(x, weight, eps)[0]
    return _RmsNorm.apply(x, weight, eps)


def _scale(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the scaled rows, and what each was multiplied with, [..., 1]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square = torch.linalg.vecdot(wide, wide).div_(x.shape[-1])
    inverse = mean_square.add_(eps).rsqrt_().unsqueeze(-1)
    return (wide * inverse).to(x.dtype) * weight.to(x.dtype), inverse


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):  # type: ignore[no-untyped-def]
        scaled, inverse = _scale(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return scaled

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, inverse = ctx.saved_tensors
        wide_dtype = inverse.dtype
        unit = x.to(wide_dtype) * inverse
        grad_unit = grad.to(wide_dtype)
        grad_weight = torch.linalg.vecdot(grad_unit.reshape(-1, x.shape[-1]), unit.reshape(-1, x.shape[-1]), dim=0).to(
            weight.dtype
        )
        grad_unit = grad_unit * weight.to(wide_dtype)
        along = torch.linalg.vecdot(grad_unit, unit).div_(x.shape[-1]).unsqueeze(-1)
        return grad_unit.addcmul_(unit, along, value=-1).mul_(inverse).to(x.dtype), grad_weight, None
