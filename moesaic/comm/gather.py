"""Rows of several ranks brought together on each of them, and sums of what each of them made of those.

The two are each other's gradient. Both are one exchange in which every rank sends to every other one: gloo's own
reduce-scatter sums everything on all ranks and cuts, which moves twice as much.

    ranks have rows      a a | b      gather_rows    a a b     | a a b
    ranks made           u u v | x x y  sum_rows     u+x u+x   | v+y
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.comm.collective import all_gather, all_to_all


def gather_rows(rows: Tensor, nums: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Return the rows of all ranks of a group, in the order of the ranks; all must call. Differentiable.

    Args:
        rows: [n, ...] of this rank.
        nums: n of each rank.
    """
    return _Gather.apply(rows, nums, group)


def sum_rows(rows: Tensor, nums: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Return, of rows in the order of the ranks, the sums over ranks of this rank's; all must call. Differentiable.

    Args:
        rows: [sum of nums, ...], what this rank made of the rows of all.
        nums: rows of each rank.
    """
    return _Sum.apply(rows, nums, group)


def count_rows(num: int, group: dist.ProcessGroup) -> list[int]:
    """Return the number that each rank of a group gives; all must call."""
    nums = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    all_gather(nums, torch.tensor([num]), group)
    return [int(each) for each in nums]


def _gather(rows: Tensor, nums: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty(sum(nums), *rows.shape[1:])
    sent = rows.detach().contiguous().repeat(len(nums), *[1] * (rows.dim() - 1))
    all_to_all(out, sent, nums, [len(rows)] * len(nums), group)
    return out


def _sum(rows: Tensor, nums: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    own = nums[group.rank()]
    parts = rows.new_empty(len(nums) * own, *rows.shape[1:])
    all_to_all(parts, rows.detach().contiguous(), [own] * len(nums), nums, group)
    return parts.view(len(nums), own, *rows.shape[1:]).sum(0)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, nums: Sequence[int], group: dist.ProcessGroup) -> Tensor:
        ctx.nums, ctx.group = nums, group
        return _gather(rows, nums, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum(grad, ctx.nums, ctx.group), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, nums: Sequence[int], group: dist.ProcessGroup) -> Tensor:
        ctx.nums, ctx.group = nums, group
        return _sum(rows, nums, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _gather(grad, ctx.nums, ctx.group), None, None
