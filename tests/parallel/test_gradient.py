"""Gradients that are sums over ranks: how they are fused, and that each is sent once."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from moesaic.parallel.gradient import SharedGradients, build_buckets
from tests.comm.pool import Pools


def _parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


def _group() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def _shapes_of_buckets() -> list[tuple[list[int], int]]:
    parameters = _parameters(10, 64, 65, 1)
    buckets = build_buckets(parameters, _group(), 512)
    for bucket in buckets:
        bucket.clear()
    assert all(parameter.grad is not None and parameter.grad.storage_offset() % 64 == 0 for parameter in parameters)
    return [([each.numel() for each in bucket.parameters], bucket.num_bytes) for bucket in buckets]


def test_buckets_hold_the_last_parameters_first_at_multiples_of_256_bytes_when_built(pools: Pools) -> None:
    # 1 and 65 values take 256 and 512 bytes, which fill a bucket of 512; 64 and 10 take 256 each.
    expected = [([1, 65], 768), ([64, 10], 512)]
    assert pools(2).run(_shapes_of_buckets) == [expected] * 2


def _dtypes_of_buckets() -> list[list[torch.dtype]]:
    parameters = [*_parameters(4), *_parameters(4, dtype=torch.float64), *_parameters(4)]
    return [[each.dtype for each in bucket.parameters] for bucket in build_buckets(parameters, _group(), 4096)]


def test_bucket_holds_one_dtype_when_parameters_have_several(pools: Pools) -> None:
    assert pools(2).run(_dtypes_of_buckets)[0] == [[torch.float32], [torch.float64], [torch.float32]]


class _Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.unused, self.last = (nn.Parameter(torch.full((100,), value)) for value in (1.0, 2.0, 3.0))


def _sent_in_backward() -> tuple[list[str], list[float], float]:
    """Tell which message was sent when, and what the gradients are, in a rank of several."""
    rank, model = dist.get_rank(), _Chain()
    buckets = build_buckets([model.first, model.unused, model.last], _group(), 1)
    gradients = SharedGradients(model, buckets, _group())
    told: list[str] = []
    for name, bucket in zip(("last", "unused", "first"), buckets, strict=True):
        send = bucket.send
        bucket.send = lambda name=name, send=send: (told.append(name), send())  # type: ignore[method-assign]
    gradients.clear()
    for is_last in (False, True):
        if is_last:
            gradients.expect_last()
        ((model.first * model.last).sum() * (rank + 1)).backward()
        told.append("backward")
    gradients.complete()
    assert model.unused.grad is not None
    values = [float(each.grad[0]) for each in (model.first, model.unused, model.last) if each.grad is not None]
    return told, values, gradients.clip(1.0)


def test_buckets_leave_in_order_once_backward_has_filled_them_when_it_is_the_last(pools: Pools) -> None:
    for told, values, norm in pools(2).run(_sent_in_backward):
        # What waits behind a bucket that is never full leaves at the end.
        assert told == ["backward", "last", "backward", "unused", "first"]
        # Two micro-batches on ranks of weight 1 and 2.
        assert values == [18.0, 0.0, 6.0]
        assert norm == pytest.approx((100 * (18**2 + 6**2)) ** 0.5)


def _sent_when_held() -> tuple[list[str], list[float]]:
    """Tell when full buckets of 512 bytes left that were held back, in two steps."""
    model = _Chain()
    buckets = build_buckets([model.first, model.unused, model.last], _group(), 1)
    gradients = SharedGradients(model, buckets, _group())
    gradients.hold()
    told: list[str] = []
    for name, bucket in zip(("last", "unused", "first"), buckets, strict=True):
        send = bucket.send
        bucket.send = lambda name=name, send=send: (told.append(name), send())  # type: ignore[method-assign]
    for _ in range(2):
        gradients.clear()
        model.last.sum().backward()
        gradients.release(10_000)  # not the last backward: nothing is complete
        gradients.expect_last()
        gradients.release(10_000)  # nothing is full: idle time is not saved up
        (model.last * 3 + model.unused).sum().backward()
        told.append("backward")
        gradients.release(511)
        told.append("short")
        gradients.release(1)  # together they are one bucket
        told.append("enough")
        gradients.complete()
    assert model.last.grad is not None
    return told, [float(model.last.grad[0]), float(model.first.grad[0])]  # type: ignore[index]


def test_full_buckets_leave_when_released_and_each_once_when_held(pools: Pools) -> None:
    step = ["backward", "short", "last", "enough", "unused", "first"]
    assert pools(2).run(_sent_when_held) == [(step * 2, [8.0, 0.0])] * 2
