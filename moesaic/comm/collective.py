"""Messages in which all ranks of a group take part: torch's, counted.

What a process has sent is told in the metrics of a run. A message counts with the bytes that this process gave.
"""

import threading
from collections import Counter
from collections.abc import Sequence

import torch.distributed as dist
from torch import Tensor


class Traffic:
    """Messages by kind, and their bytes; threads may count at once."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, kind: str, tensor: Tensor) -> None:
        """Count a message."""
        with self._lock:
            self._counts[f"{kind}_messages"] += 1
            self._counts[f"{kind}_bytes"] += tensor.nbytes

    def take(self) -> dict[str, int]:
        """Return the counts since this was called last, as 'KIND_messages' and 'KIND_bytes'."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(sorted(counts.items()))


# Of this process, as the system counts what goes over an interface.
TRAFFIC = Traffic()


def all_reduce(
    tensor: Tensor,
    group: dist.ProcessGroup | None = None,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
    async_op: bool = False,
) -> dist.Work | None:
    """Replace a tensor by its sum, or what `op` says, over the ranks; None: all."""
    TRAFFIC.add("all_reduce", tensor)
    return dist.all_reduce(tensor, op, group, async_op)


def all_gather(parts: list[Tensor], tensor: Tensor, group: dist.ProcessGroup | None = None) -> None:
    """Fill the parts with the tensor of each rank."""
    TRAFFIC.add("all_gather", tensor)
    dist.all_gather(parts, tensor, group)


def all_to_all(
    out: Tensor,
    rows: Tensor,
    received: Sequence[int] | None = None,
    sent: Sequence[int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Send rows to each rank and fill `out` with what comes; without numbers of rows, as many to each."""
    TRAFFIC.add("all_to_all", rows)
    out_splits, in_splits = (None if each is None else list(each) for each in (received, sent))
    dist.all_to_all_single(out, rows, out_splits, in_splits, group)
