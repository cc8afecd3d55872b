"""What messages cost: the figures of the slowest rank, on all ranks."""

import time

import pytest
import torch.distributed as dist

from moesaic.comm.all_to_all import FlatAllToAll
from moesaic.comm.cost import Cost
from moesaic.comm.mesh import build_mesh
from moesaic.comm.profile import even_message, fit_all_gather, fit_all_reduce, fit_exchange, measure, sizes_up_to
from tests.comm.pool import Pools


def _fits() -> list[Cost]:
    mesh = build_mesh(2, 1, 2)
    all_to_all = FlatAllToAll(mesh.tokens)
    return [fit_exchange(all_to_all, 2**16), fit_all_gather(mesh.everyone, 2**16), fit_all_reduce(mesh.everyone, 2**16)]


def test_ranks_have_the_same_costs_when_messages_are_measured(pools: Pools) -> None:
    first, second = pools(2).run(_fits)
    assert first == second
    assert all(0 < cost.seconds(2**16) < 10 for cost in first)


def _slow_rank() -> float:
    return measure(lambda: time.sleep(0.05 * dist.get_rank()))


def test_time_is_that_of_the_slowest_rank_when_measured(pools: Pools) -> None:
    first, second = pools(2).run(_slow_rank)
    assert first == second
    assert first >= 0.05


def _num_bytes(num_bytes: int) -> int:
    exchange, rows = even_message(FlatAllToAll(build_mesh(2, 1, 2).tokens), num_bytes)
    assert exchange.move(rows, False).shape == rows.shape
    return rows.nbytes


@pytest.mark.parametrize(("asked", "sent"), [(1024, 1024), (1, 8), (1030, 1024)])
def test_message_is_as_long_as_asked_when_it_divides_into_ranks(asked: int, sent: int, pools: Pools) -> None:
    assert pools(2).run(_num_bytes, asked) == [sent, sent]


def test_sizes_differ_and_are_at_least_one_when_few_are_left() -> None:
    assert sizes_up_to(640) == [10, 80, 320, 640]
    assert sizes_up_to(1) == [1]
