"""Embedding table and output head in parts: columns of the table and rows of the head, one part a rank.

Kept whole, the two are most of what ranks keep alike in a model with a large vocabulary, and the gradients of all their
rows are summed over ranks in each step. In parts, ids and hidden states of the tokens travel instead:

    table [V, D/N]    ids to all, columns of every token back to its rank     backward: columns to their owner
    head  [V/N, D]    hidden states to all, a few numbers a token summed      backward: sums for a rank's own tokens

No gradient of a parameter is summed over ranks: each rank sees the tokens of all.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from moesaic.comm.all_to_all import FlatExchange
from moesaic.comm.collective import all_reduce
from moesaic.comm.gather import count_rows, gather_rows, sum_rows
from moesaic.models.model import LanguageModel
from moesaic.ops.linear_cross_entropy import Slopes, differentiate, refuse_second_derivative, score_labels
from moesaic.ops.loss import IGNORED_LABEL
from moesaic.parallel.part import local_view


class SharedEmbedding(nn.Module):
    """Some columns of an embedding table.

    Args:
        weight: [V, D], cut along D.
        group: the ranks that have the others.
        dtype_fn: tells in which dtype the columns travel; None: that of the table.
    """

    def __init__(
        self, weight: nn.Parameter, group: dist.ProcessGroup, dtype_fn: Callable[[], torch.dtype | None]
    ) -> None:
        super().__init__()
        self.weight = weight
        self._group = group
        self._dtype_fn = dtype_fn

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Return the embedding [B, S, D] of this rank's tokens; all ranks must call."""
        nums = count_rows(ids_BS.numel(), self._group)
        ids = gather_rows(ids_BS.flatten(), nums, self._group)
        weight = local_view(self.weight)
        columns = nn.functional.embedding(ids, weight).to(self._dtype_fn() or weight.dtype)
        exchange = FlatExchange(self._group, nums, [ids_BS.numel()] * len(nums))
        parts = exchange.send(columns).view(len(nums), *ids_BS.shape, weight.shape[1])
        return parts.movedim(0, 2).flatten(2)


class SharedCrossEntropy:
    """The cross-entropy of all ranks' tokens under a head of which each rank has some rows.

    A rank holds the hidden states of all ranks' tokens while it computes: N T D elements, and T N (V / N) in backward.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def __call__(self, hidden_TD: Tensor, head: Tensor, labels_T: Tensor) -> Tensor:
        """Do as `linear_cross_entropy` for this rank's tokens; all ranks must call."""
        counts_T = labels_T != IGNORED_LABEL
        # Rows are dealt out as evenly as possible in runs of the same length, the last ranks less.
        first = -(-head.shape[0] // self._group.size()) * self._group.rank()
        return _CrossEntropy.apply(hidden_TD[counts_T], local_view(head), labels_T[counts_T], first, self._group)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_TD: Tensor, head: Tensor, labels_T: Tensor, first: int, group: Any) -> Tensor:
        nums = count_rows(len(own_TD), group)
        hidden_TD, labels_T = gather_rows(own_TD, nums, group), gather_rows(labels_T, nums, group) - first
        scores = score_labels(hidden_TD, head, labels_T)
        largest_T = scores.largest_T.clone()
        all_reduce(largest_T, group, dist.ReduceOp.MAX)
        sums_2T = torch.stack([scores.total_T * (scores.largest_T - largest_T).exp(), scores.target_T])
        all_reduce(sums_2T, group)
        logsumexp_T, loss_T = type(scores)(largest_T, *sums_2T).finish()
        ctx.save_for_backward(hidden_TD, head, labels_T, logsumexp_T)
        ctx.nums, ctx.group = nums, group
        return loss_T.split(nums)[group.rank()].sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        refuse_second_derivative()
        # What is wanted of a token is its own rank's to say.
        grads = gather_rows(grad.view(1), [1] * len(ctx.nums), ctx.group)
        grad_T = grads.repeat_interleave(torch.tensor(ctx.nums, device=grads.device))
        hidden_TD, head, labels_T, logsumexp_T = ctx.saved_tensors
        slopes, needed = Slopes(grad_T, -grad_T), (True, ctx.needs_input_grad[1])
        grad_hidden_TD, grad_head = differentiate(hidden_TD, head, labels_T, logsumexp_T, slopes, needed)
        assert grad_hidden_TD is not None, "it was asked for"
        return sum_rows(grad_hidden_TD, ctx.nums, ctx.group), grad_head, None, None, None


def apply_embedding_parallel(model: LanguageModel, mesh: DeviceMesh) -> LanguageModel:
    """Leave each rank its columns of the table and its rows of the head; all ranks must call.

    Args:
        model: with a head of its own; whole on each rank, or without weights.
        mesh: one axis, of a size that divides the width.
    """
    group, decoder = mesh.get_group(), model.decoder
    assert model.head is not None, "a table that is also the head is not cut"
    table = distribute_tensor(decoder.embedding.weight.detach(), mesh, [Shard(1)], src_data_rank=None)
    head = distribute_tensor(model.head.weight.detach(), mesh, [Shard(0)], src_data_rank=None)
    part = SharedEmbedding(nn.Parameter(table), group, lambda: decoder.compute_dtype)
    decoder.embedding = part  # type: ignore[assignment]  # which is called as the table is
    model.head.weight = nn.Parameter(head)
    model.cross_entropy_fn = SharedCrossEntropy(group)
    return model
