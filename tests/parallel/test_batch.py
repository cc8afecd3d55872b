"""What a rank learns of the others' tokens."""

import torch
import torch.distributed as dist

from moesaic.parallel.batch import SharedBatch
from tests.comm.pool import Pools


def _learn(nums: list[int]) -> None:
    rank, num = dist.get_rank(), nums[dist.get_rank()]
    assert dist.group.WORLD is not None
    batch = SharedBatch(dist.group.WORLD)
    assert batch.total(torch.tensor([num, 1])).tolist() == [sum(nums), len(nums)]
    assert batch.place(num) == (sum(nums[:rank]), sum(nums))
    own = (torch.arange(num * 2.0).view(num, 2) + 100 * rank).requires_grad_()
    rows = batch.gather(own)
    expected = [torch.arange(each * 2.0).view(each, 2) + 100 * other for other, each in enumerate(nums)]
    assert torch.equal(rows, torch.cat(expected))
    (rows * torch.arange(1.0, len(rows) + 1).unsqueeze(1)).sum().backward()
    first = sum(nums[:rank])
    assert own.grad is not None
    assert own.grad[:, 0].tolist() == [float(first + index + 1) for index in range(num)]


def test_rows_of_all_ranks_stand_in_their_order_when_gathered(pools: Pools) -> None:
    for nums in ([3, 3], [0, 4], [5, 0], [0, 0]):
        pools(2).run(_learn, nums)
