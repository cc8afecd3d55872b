"""The processes of a run, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from moesaic.comm.collective import all_reduce
from moesaic.comm.meeting import meet
from moesaic.hw.device import find_device

_CPU = torch.device("cpu")
# Whoever waits for the first process to read and tokenise a corpus waits for hours, and is told if it ends.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class World:
    """This process among all of a run.

    Attributes:
        rank: 0..size-1.
        size: number of processes.
        num_here: those of them that are on this machine.
        device: that computes in this process.
    """

    rank: int = 0
    size: int = 1
    num_here: int = 1
    device: torch.device = _CPU
    _patient: dist.ProcessGroup | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Tell whether this is the process that writes what is written once."""
        return self.rank == 0

    def rows(self, num_rows: int) -> slice:
        """Return which rows of a batch are this process's: neighbours, as many as others have or one more."""
        return slice(num_rows * self.rank // self.size, num_rows * (self.rank + 1) // self.size)

    def total(self, values: list[float]) -> list[float]:
        """Return the sum of each value over all processes; all must call."""
        if self.size == 1:
            return values
        totals = torch.tensor(values, dtype=torch.float64)
        all_reduce(totals)
        return totals.tolist()

    def largest(self, value: int) -> int:
        """Return the largest value of any process; all must call."""
        if self.size == 1:
            return value
        largest = torch.tensor(value)
        all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, values: list[int]) -> list[list[int]]:
        """Return every process's values, as many as there are here; all must call."""
        if self.size == 1:
            return [values]
        gathered = torch.zeros(self.size, len(values), dtype=torch.int64)
        gathered[self.rank] = torch.tensor(values)
        all_reduce(gathered)
        return gathered.tolist()

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Run a block in the first process, and when it is through, in the others; all must call."""
        if not self.is_first:
            self._wait_patiently()
        yield
        if self.is_first:
            self._wait_patiently()

    def _wait_patiently(self) -> None:
        if self.size > 1:
            dist.barrier(self._patient)


ALONE = World()


@contextmanager
def join_world(timeout_s: int, device: str = "cpu") -> Iterator[World]:
    """Meet the other processes that torchrun started; without torchrun, or for one process, there is nobody to meet.

    They talk over gloo, and about what GPUs hold, over NCCL.

    Args:
        timeout_s: after so long a wait, another process counts as dead.
        device: 'cpu', or 'cuda' for a GPU of each process's own.

    Raises:
        ParallelError: not all came in time.
        ConfigError, UnsupportedError: there is no such device for this process.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    own = find_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if size == 1:
        yield World(device=own)
        return
    timeout = timedelta(seconds=timeout_s)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo",
        store=meet(store, rank, size, timeout_s),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    try:
        patient = dist.new_group(timeout=_PATIENCE, backend="gloo")
        yield World(rank, size, int(os.environ["LOCAL_WORLD_SIZE"]), own, patient)
    finally:
        dist.destroy_process_group()
