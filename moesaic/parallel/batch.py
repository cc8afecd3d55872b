"""A batch whose sequences are dealt out to ranks: what one rank must know of the others' tokens."""

import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.comm.collective import all_gather, all_reduce


class SharedBatch:
    """This rank's part of a batch; the parts stand in the order of the ranks, and all ranks must ask alike."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._rank, self._size = group.rank(), group.size()

    def total(self, counts: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        total = counts.detach().clone()
        all_reduce(total, self._group)
        return total

    def place(self, num_tokens: int) -> tuple[int, int]:
        """Return how many tokens are on ranks before this one, and on all."""
        nums = self._nums(num_tokens)
        return sum(nums[: self._rank]), sum(nums)

    def gather(self, rows_TX: Tensor) -> Tensor:
        """Return the rows of all ranks; gradients reach this rank's alone."""
        nums = self._nums(len(rows_TX))
        # Every rank sends as many rows as the one that has most.
        padded = rows_TX.detach().new_zeros(max(nums), *rows_TX.shape[1:])
        padded[: len(rows_TX)] = rows_TX.detach()
        gathered = [torch.empty_like(padded) for _ in nums]
        all_gather(gathered, padded, self._group)
        parts = [part[:num] for part, num in zip(gathered, nums, strict=True)]
        parts[self._rank] = rows_TX
        return torch.cat(parts)

    def _nums(self, num_tokens: int) -> list[int]:
        nums = torch.zeros(self._size, dtype=torch.int64)
        nums[self._rank] = num_tokens
        all_reduce(nums, self._group)
        return nums.tolist()
