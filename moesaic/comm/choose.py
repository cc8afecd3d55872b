"""Which way of exchanging rows is faster here."""

import statistics
import time

import torch
import torch.distributed as dist

from moesaic.comm.all_to_all import AllToAll, FlatAllToAll
from moesaic.comm.hierarchical import HierarchicalAllToAll
from moesaic.comm.mesh import Mesh

_REPEATS = 5


def choose_all_to_all(mesh: Mesh, kind: str, num_rows: int, row_bytes: int) -> AllToAll:
    """Return the exchange between the ranks that share the experts of a layer; all ranks must call.

    Args:
        kind: 'flat', 'hierarchical', or 'auto' for the faster of both.
        num_rows, row_bytes: of what a rank sends in a usual exchange, to measure with.
    """
    flat = FlatAllToAll(mesh.tokens)
    if mesh.nodes is None or kind == "flat":
        return flat
    hierarchical = HierarchicalAllToAll(mesh.nodes.get_group("node"), mesh.nodes.get_group("rail"))
    if kind == "hierarchical":
        return hierarchical
    seconds = [measure_exchange(each, num_rows, row_bytes) for each in (flat, hierarchical)]
    # The slowest rank's time is everybody's, and makes all of them choose alike.
    slowest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return hierarchical if slowest[1] < slowest[0] else flat


def measure_exchange(all_to_all: AllToAll, num_rows: int, row_bytes: int) -> float:
    """Return the seconds that it takes to tell how many rows there are, and to send them, as many to each rank."""
    rows = torch.zeros(max(1, num_rows // all_to_all.size) * all_to_all.size, row_bytes, dtype=torch.uint8)
    counts_W1 = torch.full((all_to_all.size, 1), len(rows) // all_to_all.size)
    seconds = []
    for _ in range(_REPEATS):
        dist.barrier()
        began = time.perf_counter()
        _, (exchange,) = all_to_all.plan(counts_W1)
        exchange.send(rows)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
