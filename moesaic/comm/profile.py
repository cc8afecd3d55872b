"""What messages cost between these ranks: measured, and fitted by a line each.

All ranks must call each of these alike. The slowest rank's time is everybody's, so all get the same figures.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist

from moesaic.comm.all_to_all import AllToAll, Exchange
from moesaic.comm.cost import Cost, fit_cost

_REPEATS = 3


def measure(run: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Return the seconds that something takes which all ranks begin together: the median of a few, after one more."""
    seconds = []
    for _ in range(repeats + 1):
        dist.barrier()
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return agree(statistics.median(seconds[1:]))


def agree(seconds: float) -> float:
    """Return the largest of all ranks."""
    slowest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


def sizes_up_to(most: int) -> list[int]:
    """Return a few sizes up to one, as far as they differ and are at least one."""
    return sorted({max(1, most // part) for part in (64, 8, 2, 1)})


def even_message(all_to_all: AllToAll, num_bytes: int) -> tuple[Exchange, torch.Tensor]:
    """Return a message of so many bytes, as many for each rank and at least a few, and what moves it."""
    rows = torch.zeros(max(1, num_bytes // all_to_all.size // 4) * all_to_all.size, 1)
    _, (exchange,) = all_to_all.plan(torch.full((all_to_all.size, 1), len(rows) // all_to_all.size))
    return exchange, rows


def time_message(all_to_all: AllToAll, num_bytes: int, repeats: int = _REPEATS) -> float:
    """Return the seconds that one message takes whose rows go evenly to all ranks; their number is known."""
    exchange, rows = even_message(all_to_all, num_bytes)
    return measure(lambda: exchange.begin(rows, False).result(), repeats)


def fit_exchange(all_to_all: AllToAll, num_bytes: int) -> Cost:
    """Fit what a message costs by the bytes that a rank sends, its own included.

    Args:
        num_bytes: of the largest one.
    """
    return fit_cost([(size, time_message(all_to_all, size)) for size in sizes_up_to(num_bytes)])


def fit_all_reduce(group: dist.ProcessGroup, num_bytes: int) -> Cost:
    """Fit what a sum over ranks costs by its bytes."""
    return _fit(num_bytes, lambda values: dist.all_reduce(values, group=group))


def fit_all_gather(group: dist.ProcessGroup, num_bytes: int) -> Cost:
    """Fit what bringing together costs by the bytes that are then there."""

    def gather(values: torch.Tensor) -> None:
        part = values[: max(1, len(values) // group.size())]
        dist.all_gather([torch.empty_like(part) for _ in range(group.size())], part, group=group)

    return _fit(num_bytes, gather)


def _fit(num_bytes: int, run: Callable[[torch.Tensor], object]) -> Cost:
    points = []
    for size in sizes_up_to(num_bytes):
        values = torch.zeros(-(-size // 4))
        points.append((size, measure(partial(run, values))))
    return fit_cost(points)
