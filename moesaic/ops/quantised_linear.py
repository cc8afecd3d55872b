"""A linear map with weights of 8 bits: inference only.

A row is quantised to -127..127 by its largest magnitude; products of integers are summed exactly and only then scaled,
(sum * channel scale) * row scale in float32. So a row's result depends on that row alone and is the same on every
backend, bit for bit, however many rows there are. A row that holds NaN or infinity gives NaN.
"""

import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.backend import choose_backend
from moesaic.ops.cpu import quantised_linear as compiled
from moesaic.ops.quant import TOKEN_DTYPES, IntegerMatrix, QuantisedMatrix, integer_parts, quantised_matrix_shapes
from moesaic.ops.tensor import check_no_gradients, check_tensor

_MIN_MAGNITUDE = 1e-30  # as in csrc/quant.h


def quantised_linear(x: Tensor, matrix: QuantisedMatrix, bias: Tensor | None = None) -> Tensor:
    """Map [..., depth] to [..., channels].

    Args:
        x: [..., depth] of float32 or bfloat16.
        matrix: from `quantise_matrix`.
        bias: [channels] of the dtype of x.

    Raises:
        UnsupportedError: a tensor has another shape, dtype or device, or asks for a gradient.
    """
    check_token_dtype("x", x)
    rows = x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x
    blocks, scales = quantised_matrix_shapes(matrix.channels, matrix.depth)
    check_tensor("x", rows, (None, matrix.depth), device=matrix.blocks.device)
    check_tensor("matrix.blocks", matrix.blocks, blocks, torch.int8)
    check_tensor("matrix.scales", matrix.scales, scales, torch.float32, matrix.blocks.device)
    check_no_gradients("maps of 8 bits", x)
    if choose_backend("quantised_linear", x) == "compiled":
        out = compiled.multiply(rows, matrix)
    else:
        parts = [multiply_integers(rows.float(), part) for part in integer_parts(matrix)]
        out = torch.cat(parts, dim=1).to(x.dtype)
    out = out.view(*x.shape[:-1], matrix.channels)
    return out if bias is None else out + bias


def check_token_dtype(name: str, tokens: Tensor) -> None:
    """Check that tokens, called `name` by the caller, are of a dtype that is quantised.

    Raises:
        UnsupportedError: the dtype is another.
    """
    if tokens.dtype not in TOKEN_DTYPES:
        raise UnsupportedError(f"{name} holds {tokens.dtype}", "give it as float32 or bfloat16")


def multiply_integers(rows: Tensor, matrix: IntegerMatrix) -> Tensor:
    """Quantise float32 rows [N, depth] and multiply, in torch: [N, channels]. float64 holds every sum exactly."""
    most = rows.abs().amax(1, keepdim=True).clamp_min(_MIN_MAGNITUDE)
    finite = most.isfinite()
    row_scales = torch.where(finite, most / 127, torch.nan)
    # A tensor of 127: torch would take a number divided by a tensor for 127 times a rounded reciprocal.
    integers = torch.where(finite, (rows * (torch.full_like(most, 127) / most)).round(), 0.0)
    sums = integers.double() @ matrix.integers.double().t()
    return sums.float() * matrix.scales * row_scales
