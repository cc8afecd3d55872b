"""The gate of a gated MLP, silu(gate) * up, between its two matrix products (Shazeer, 2020, "GLU Variants Improve
Transformer", SwiGLU).

One pass forward and one backward, computed in float32 and rounded once; the backward keeps the input alone. With
s = sigmoid(gate), the gradient of silu is s (1 + gate (1 - s)).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from moesaic.ops.gpu.launch import block_width, launch, num_blocks


def swiglu(hidden_N2F: Tensor) -> Tensor:
    """Return [N, F]: silu of the first half of each row times its second half."""
    return _SwiGlu.apply(hidden_N2F)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_N2F):  # type: ignore[no-untyped-def]
        hidden_N2F = hidden_N2F.contiguous()
        ctx.save_for_backward(hidden_N2F)
        num_rows, width = len(hidden_N2F), hidden_N2F.shape[1] // 2
        gated_NF = hidden_N2F.new_empty(num_rows, width)
        block = block_width(width)
        grid = (num_rows, num_blocks(width, block))
        launch(_swiglu_forward_kernel, grid, hidden_N2F, gated_NF, width, BLOCK_F=block)
        return gated_NF

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_NF):  # type: ignore[no-untyped-def]
        (hidden_N2F,) = ctx.saved_tensors
        num_rows, width = grad_NF.shape
        grad_hidden_N2F = torch.empty_like(hidden_N2F)
        block = block_width(width)
        grid = (num_rows, num_blocks(width, block))
        launch(_swiglu_backward_kernel, grid, grad_NF.contiguous(), hidden_N2F, grad_hidden_N2F, width, BLOCK_F=block)
        return grad_hidden_N2F


@triton.jit
def _swiglu_forward_kernel(hidden_ptr, gated_ptr, width, BLOCK_F: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = columns < width
    gate_at = hidden_ptr + row * 2 * width + columns
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + width, mask=inside, other=0.0).to(tl.float32)
    tl.store(gated_ptr + row * width + columns, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit
def _swiglu_backward_kernel(grad_ptr, hidden_ptr, grad_hidden_ptr, width, BLOCK_F: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = columns < width
    gate_at = row * 2 * width + columns
    gate = tl.load(hidden_ptr + gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(hidden_ptr + gate_at + width, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
    open_share = tl.sigmoid(gate)
    silu_slope = open_share * (1 + gate * (1 - open_share))
    tl.store(grad_hidden_ptr + gate_at, grad * up * silu_slope, mask=inside)
    tl.store(grad_hidden_ptr + gate_at + width, grad * gate * open_share, mask=inside)
