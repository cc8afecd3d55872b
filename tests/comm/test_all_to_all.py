"""Rows that travel between ranks: each arrives once, in its place, and its gradient comes back."""

import random

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from moesaic.comm.all_to_all import AllToAll, FlatAllToAll
from moesaic.comm.hierarchical import HierarchicalAllToAll
from tests.comm.pool import Pools

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.float64] * 3


def _splits(seed: int, size: int) -> list[list[int]]:
    """Return how many rows each rank sends to each; many send none."""
    drawn = random.Random(seed)
    return [[drawn.choice([0, 0, 1, 2, 7]) for _ in range(size)] for _ in range(size)]


def _flat() -> AllToAll:
    assert dist.group.WORLD is not None
    return FlatAllToAll(dist.group.WORLD)


def _two_hops(num_nodes: int) -> AllToAll:
    mesh = init_device_mesh("cpu", (num_nodes, dist.get_world_size() // num_nodes), mesh_dim_names=("rail", "node"))
    return HierarchicalAllToAll(mesh.get_group("node"), mesh.get_group("rail"))


def _exchange(num_nodes: int | None) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    all_to_all = _flat() if num_nodes is None else _two_hops(num_nodes)
    assert all_to_all.size == size
    for seed, dtype in enumerate(DTYPES):
        ones, others = _splits(seed, size), _splits(seed + 100, size)
        counts_WC = torch.stack([torch.tensor(ones[rank]), torch.tensor(others[rank])], dim=1)
        received_WC, exchanges = all_to_all.plan(counts_WC)
        assert received_WC.tolist() == [[one[rank], other[rank]] for one, other in zip(ones, others, strict=True)]
        for splits, exchange in zip((ones, others), exchanges, strict=True):
            # A row tells who sent it to whom, and which one of theirs it is.
            rows = [[rank, to, index] for to, count in enumerate(splits[rank]) for index in range(count)]
            tensor = torch.tensor(rows, dtype=dtype).view(-1, 3)
            tensor.requires_grad_(dtype.is_floating_point)
            found = exchange.send(tensor)
            coming = [(source, each[rank]) for source, each in enumerate(splits)]
            assert found.tolist() == [[source, rank, index] for source, count in coming for index in range(count)]
            assert torch.equal(exchange.send_back(found), tensor)
            if dtype.is_floating_point:
                (found * (10 + rank)).sum().backward(retain_graph=True)
                scale = [[10.0 + to] * 3 for to, count in enumerate(splits[rank]) for _ in range(count)]
                assert tensor.grad is not None
                assert tensor.grad.tolist() == scale
                tensor.grad = None
                weights = torch.arange(1.0, tensor.numel() + 1).view_as(tensor).to(dtype)
                (exchange.send_back(found) * weights).sum().backward()
                assert torch.equal(tensor.grad, weights)


@pytest.mark.parametrize("size", [2, 4])
def test_rows_and_gradients_arrive_when_splits_are_uneven_or_empty(size: int, pools: Pools) -> None:
    pools(size).run(_exchange, None)


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
def test_rows_and_gradients_arrive_when_they_travel_in_two_hops(num_nodes: int, pools: Pools) -> None:
    pools(4).run(_exchange, num_nodes)
