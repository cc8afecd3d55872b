"""Rows of all ranks on each, and sums of what each made of them: exact, with gradients, for any number of rows."""

import pytest
import torch
import torch.distributed as dist

from moesaic.comm.gather import count_rows, gather_rows, sum_rows
from tests.comm.pool import Pools


def _group() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def _rows(rank: int, num: int) -> torch.Tensor:
    return 100.0 * rank + torch.arange(num * 2.0, dtype=torch.float64).view(num, 2)


def _gather(nums: list[int]) -> None:
    rank, group = dist.get_rank(), _group()
    assert count_rows(nums[rank], group) == nums
    own = _rows(rank, nums[rank]).requires_grad_()
    found = gather_rows(own, nums, group)
    assert torch.equal(found, torch.cat([_rows(each, num) for each, num in enumerate(nums)]))
    # Each rank weighs what it got by a number of its own: a row's gradient is the sum over ranks.
    (found * (rank + 1)).sum().backward()
    assert own.grad is not None
    assert torch.equal(own.grad, torch.full_like(own, sum(range(1, len(nums) + 1))))


def _sum(nums: list[int]) -> None:
    rank, group = dist.get_rank(), _group()
    made = (_rows(0, sum(nums)) * (rank + 1)).requires_grad_()
    found = sum_rows(made, nums, group)
    expected = (_rows(0, sum(nums)) * sum(range(1, len(nums) + 1))).split(nums)[rank]
    assert torch.equal(found, expected)
    (found * (rank + 10)).sum().backward()
    weights = torch.cat([torch.full((num, 2), float(each + 10)) for each, num in enumerate(nums)])
    assert made.grad is not None
    assert torch.equal(made.grad, weights.double())


@pytest.mark.parametrize("nums", [[3, 3], [1, 4], [0, 2], [0, 0]], ids=str)
def test_rows_and_sums_are_those_of_all_ranks_when_two_share(nums: list[int], pools: Pools) -> None:
    pools(2).run(_gather, nums)
    pools(2).run(_sum, nums)


def test_rows_and_sums_are_those_of_all_ranks_when_four_share(pools: Pools) -> None:
    pools(4).run(_gather, [2, 0, 5, 1])
    pools(4).run(_sum, [2, 0, 5, 1])
