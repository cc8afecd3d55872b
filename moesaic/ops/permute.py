"""Rows sorted by expert, and back as weighted sums over each token's rows.

A routing is a list of (token, expert) pairs, tokens ascending. The experts want rows grouped by expert:

    pairs      token  0 0 1 1 2        expert  3 1 0 3 1
    rows              1 0 2 0 1        grouped 0 1 1 3 3      order    2 1 4 0 3
    inverse           3 1 0 4 2        pair n stands in row inverse[n]

`permute` gathers; its gradient is the plain sum over each token's rows. `combine` is that sum with weights;
its gradient gathers again. Both sums are one segmented gather-and-add per token, in the order of the pairs.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.errors import UnsupportedError
from moesaic.hw.blocks import new_rows
from moesaic.ops.backend import choose_backend, load_gpu_module
from moesaic.ops.cpu import routing as compiled
from moesaic.ops.permutation import Permutation
from moesaic.ops.tensor import check_tensor


def group_by_expert(token_ids_N: Tensor, expert_ids_N: Tensor, num_tokens: int, num_experts: int) -> Permutation:
    """Build the permutation of pairs whose token ids ascend; any number of pairs per token, even none.

    Args:
        token_ids_N, expert_ids_N: int64 [N].

    Raises:
        UnsupportedError: an argument is no such tensor; on CPU with compiled kernels also: an id is out of range or
            the token ids do not ascend.
    """
    check_tensor("token_ids_N", token_ids_N, (None,), torch.int64)
    check_tensor("expert_ids_N", expert_ids_N, (len(token_ids_N),), torch.int64, token_ids_N.device)
    backend = choose_backend("group_by_expert", token_ids_N)
    if backend == "compiled":
        return Permutation(*compiled.group_by_expert(token_ids_N, expert_ids_N, num_tokens, num_experts))
    if backend == "triton":
        return load_gpu_module("route").group_by_expert(token_ids_N, expert_ids_N, num_tokens, num_experts)
    order_N = expert_ids_N.argsort(stable=True)
    inverse_N = torch.empty_like(order_N)
    inverse_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    per_token_T = torch.bincount(token_ids_N, minlength=num_tokens)
    return Permutation(
        token_ids_N=token_ids_N[order_N],
        inverse_N=inverse_N,
        starts_T=per_token_T.cumsum(0) - per_token_T,
        counts_E=torch.bincount(expert_ids_N, minlength=num_experts),
    )


def check_routing(
    routing: Permutation | Tensor, weights: Tensor, num_tokens: int, num_experts: int, device: torch.device
) -> None:
    """Check how pairs are given to a mixture: grouped, or as expert ids [T, K]; and their weights.

    Raises:
        UnsupportedError: a tensor has another shape, dtype or device.
    """
    if isinstance(routing, Tensor):
        check_tensor("routing", routing, (num_tokens, None), torch.int64, device)
        check_tensor("weights", weights, routing.shape, device=device)
    else:
        num_pairs = len(routing.token_ids_N)
        check_tensor("routing.token_ids_N", routing.token_ids_N, (None,), torch.int64, device)
        check_tensor("routing.inverse_N", routing.inverse_N, (num_pairs,), torch.int64, device)
        check_tensor("routing.starts_T", routing.starts_T, (num_tokens,), torch.int64, device)
        check_tensor("routing.counts_E", routing.counts_E, (num_experts,), torch.int64, device)
        check_tensor("weights", weights, (num_pairs,), device=device)
    if not weights.is_floating_point():
        raise UnsupportedError(f"weights holds {weights.dtype}", "give it in a floating dtype")


def as_permutation(routing: Permutation | Tensor, num_experts: int) -> Permutation:
    """Group the rows of expert ids [T, K]; what is grouped already stays."""
    if not isinstance(routing, Tensor):
        return routing
    num_tokens, num_chosen = routing.shape
    token_ids_N = torch.arange(num_tokens, device=routing.device).repeat_interleave(num_chosen)
    return group_by_expert(token_ids_N, routing.flatten(), num_tokens, num_experts)


def permute(hidden_TD: Tensor, permutation: Permutation) -> Tensor:
    """Return [N, D]: one row per pair, grouped by expert."""
    if choose_backend("permute", hidden_TD) == "triton":
        return load_gpu_module("permute").permute(hidden_TD, permutation)
    return _Permute.apply(hidden_TD, permutation)


def combine(rows_ND: Tensor, weights_N: Tensor | None, permutation: Permutation) -> Tensor:
    """Return [T, D]: for each token, the sum of its rows times their weights; zero for a token without rows.

    Args:
        rows_ND: grouped by expert, as `permute` made them.
        weights_N: in the order of the pairs, of any floating dtype; applied in the dtype of the rows. None: all 1.
    """
    if choose_backend("combine", rows_ND) == "triton":
        weights_N = rows_ND.new_ones(len(rows_ND)) if weights_N is None else weights_N
        return load_gpu_module("permute").combine(rows_ND, weights_N, permutation)
    if weights_N is None:
        return _Sum.apply(rows_ND, permutation)
    return _Combine.apply(rows_ND, weights_N, permutation)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TD, permutation):  # type: ignore[no-untyped-def]
        ctx.permutation = permutation
        return _gather(hidden_TD, permutation)

    @staticmethod
    def backward(ctx, grad_ND):  # type: ignore[no-untyped-def]
        return _sum_rows(grad_ND.contiguous(), None, ctx.permutation), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND, permutation):  # type: ignore[no-untyped-def]
        ctx.permutation = permutation
        return _sum_rows(rows_ND, None, permutation)

    @staticmethod
    def backward(ctx, grad_TD):  # type: ignore[no-untyped-def]
        return _gather(grad_TD, ctx.permutation), None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_ND, weights_N, permutation):  # type: ignore[no-untyped-def]
        ctx.permutation = permutation
        ctx.save_for_backward(rows_ND, weights_N)
        return _sum_rows(rows_ND, weights_N.to(rows_ND.dtype), permutation)

    @staticmethod
    def backward(ctx, grad_TD):  # type: ignore[no-untyped-def]
        rows_ND, weights_N = ctx.saved_tensors
        inverse_N = ctx.permutation.inverse_N
        grad_ND = grad_TD.index_select(0, ctx.permutation.token_ids_N)
        grad_weights_N = torch.linalg.vecdot(grad_ND, rows_ND)[inverse_N].to(weights_N.dtype)
        by_row_N = torch.empty_like(weights_N)
        by_row_N[inverse_N] = weights_N
        return grad_ND.mul_(by_row_N.to(grad_ND.dtype).unsqueeze(1)), grad_weights_N, None


def _gather(hidden_TD: Tensor, permutation: Permutation) -> Tensor:
    token_ids_N = permutation.token_ids_N
    return torch.index_select(hidden_TD, 0, token_ids_N, out=new_rows(hidden_TD, len(token_ids_N)))


def _sum_rows(rows_ND: Tensor, weights_N: Tensor | None, permutation: Permutation) -> Tensor:
    if rows_ND.numel() == 0:
        return rows_ND.new_zeros(len(permutation.starts_T), rows_ND.shape[1])
    return functional.embedding_bag(
        permutation.inverse_N, rows_ND, permutation.starts_T, mode="sum", per_sample_weights=weights_N
    )
