"""Rows sorted by expert, and back as weighted sums over each token's rows: see `ops/permute.py` for the picture.

Sums run in float32, in the order of the pairs, and are rounded once. `permute` gathers and its gradient is
`combine` without weights; the gradient of `combine` is one pass over rows that gives both of its halves.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from moesaic.ops.gpu.launch import block_width, launch, num_blocks
from moesaic.ops.permutation import Permutation


def permute(hidden_TD: Tensor, permutation: Permutation) -> Tensor:
    """Return [N, D]: one row per pair, grouped by expert."""
    return _Permute.apply(hidden_TD, permutation)


def combine(rows_ND: Tensor, weights_N: Tensor, permutation: Permutation) -> Tensor:
    """Return [T, D]: for each token, the sum of its rows times their weights; zero for a token without rows.

    Args:
        rows_ND: grouped by expert, as `permute` made them.
        weights_N: in the order of the pairs, of any floating dtype; applied in float32.
    """
    return _Combine.apply(rows_ND, weights_N, permutation)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TD, permutation):  # type: ignore[no-untyped-def]
        ctx.permutation = permutation
        return _gather_rows(hidden_TD.contiguous(), permutation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):  # type: ignore[no-untyped-def]
        return _sum_rows(grad_ND.contiguous(), None, ctx.permutation), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND, weights_N, permutation):  # type: ignore[no-untyped-def]
        rows_ND, weights_N = rows_ND.contiguous(), weights_N.contiguous()
        ctx.permutation = permutation
        ctx.save_for_backward(rows_ND, weights_N)
        return _sum_rows(rows_ND, weights_N, permutation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TD):  # type: ignore[no-untyped-def]
        rows_ND, weights_N = ctx.saved_tensors
        num_pairs, width = rows_ND.shape
        grad_rows_ND, grad_weights_N = torch.empty_like(rows_ND), torch.empty_like(weights_N)
        launch(
            _combine_backward_kernel,
            (num_pairs,),
            grad_TD.contiguous(),
            rows_ND,
            weights_N,
            ctx.permutation.token_ids_N,
            ctx.permutation.inverse_N,
            grad_rows_ND,
            grad_weights_N,
            width,
            BLOCK_D=block_width(width),
        )
        return grad_rows_ND, grad_weights_N, None


def _gather_rows(hidden_TD: Tensor, permutation: Permutation) -> Tensor:
    num_rows, width = len(permutation.token_ids_N), hidden_TD.shape[1]
    rows_ND = hidden_TD.new_empty(num_rows, width)
    block = block_width(width)
    grid = (num_rows, num_blocks(width, block))
    launch(_permute_forward_kernel, grid, hidden_TD, permutation.token_ids_N, rows_ND, width, BLOCK_D=block)
    return rows_ND


def _sum_rows(rows_ND: Tensor, weights_N: Tensor | None, permutation: Permutation) -> Tensor:
    num_tokens, (num_pairs, width) = len(permutation.starts_T), rows_ND.shape
    sums_TD = rows_ND.new_empty(num_tokens, width)
    block = block_width(width)
    launch(
        _combine_forward_kernel,
        (num_tokens, num_blocks(width, block)),
        rows_ND,
        rows_ND if weights_N is None else weights_N,
        permutation.inverse_N,
        permutation.starts_T,
        sums_TD,
        num_tokens,
        num_pairs,
        width,
        HAS_WEIGHTS=weights_N is not None,
        BLOCK_D=block,
    )
    return sums_TD


@triton.jit
def _permute_forward_kernel(hidden_ptr, tokens_ptr, rows_ptr, width, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens_ptr + row)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    tl.store(rows_ptr + row * width + columns, tl.load(hidden_ptr + token * width + columns, mask=inside), mask=inside)


@triton.jit
def _combine_forward_kernel(  # type: ignore[no-untyped-def]
    rows_ptr,
    weights_ptr,
    inverse_ptr,
    starts_ptr,
    sums_ptr,
    num_tokens,
    num_pairs,
    width,
    HAS_WEIGHTS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < width
    start = tl.load(starts_ptr + token)
    end = tl.load(starts_ptr + token + 1, mask=token + 1 < num_tokens, other=num_pairs)
    total = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for pair in range(start, end):
        row = tl.load(inverse_ptr + pair)
        addend = tl.load(rows_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_WEIGHTS:
            addend = addend * tl.load(weights_ptr + pair).to(tl.float32)
        total += addend
    tl.store(sums_ptr + token * width + columns, total, mask=inside)


@triton.jit
def _combine_backward_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    rows_ptr,
    weights_ptr,
    tokens_ptr,
    inverse_ptr,
    grad_rows_ptr,
    grad_weights_ptr,
    width,
    BLOCK_D: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    row = tl.load(inverse_ptr + pair)
    token = tl.load(tokens_ptr + row)
    weight = tl.load(weights_ptr + pair).to(tl.float32)
    products = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for first in range(0, width, BLOCK_D):
        columns = first + tl.arange(0, BLOCK_D)
        inside = columns < width
        grad = tl.load(grad_ptr + token * width + columns, mask=inside, other=0.0).to(tl.float32)
        products += grad * tl.load(rows_ptr + row * width + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_rows_ptr + row * width + columns, grad * weight, mask=inside)
    tl.store(grad_weights_ptr + pair, tl.sum(products, axis=0))
