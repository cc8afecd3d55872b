"""Rows from every rank of a group to every other, as many to each as there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.comm.collective import all_to_all
from moesaic.comm.line import Arrival, Line
from moesaic.hw.blocks import new_rows


class Exchange(Protocol):
    """Rows on their way between the ranks of a group, the same number of them each time; all ranks must call alike."""

    def send(self, rows: Tensor) -> Tensor:
        """Send rows, those for rank 0 first, and return what comes, what is from rank 0 first; differentiable."""
        ...

    def send_back(self, rows: Tensor) -> Tensor:
        """Send rows, as they came by `send`, back to where they came from; differentiable."""
        ...

    def begin(self, rows: Tensor, back: bool) -> Arrival:
        """Begin to do either, without a gradient; nothing else may be sent in the group until it has come."""
        ...

    def move(self, rows: Tensor, back: bool) -> Tensor:
        """Do either, without a gradient, and wait."""
        ...


class AllToAll(Protocol):
    """A way to exchange rows.

    Attributes:
        size: ranks of the group, W.
    """

    size: int

    @property
    def hops(self) -> "Sequence[AllToAll]":
        """Return the exchanges that a message consists of, the first first."""
        ...

    def plan(self, counts_WC: Tensor) -> tuple[Tensor, list[Exchange]]:
        """Tell each rank how many rows it will get.

        Args:
            counts_WC: rows of C kinds for each rank, int64.

        Returns:
            [W, C], the rows from each rank, and for each kind the exchange that moves them.
        """
        ...


class FlatAllToAll:
    """Every rank sends to every other one."""

    def __init__(self, group: dist.ProcessGroup, line: Line | None = None) -> None:
        """Take a group, and the line that sends its messages where others share it."""
        self._group = group
        self._line = line or Line()
        self.size = group.size()

    @property
    def hops(self) -> Sequence[AllToAll]:
        """Return this one."""
        return (self,)

    def plan(self, counts_WC: Tensor) -> tuple[Tensor, list[Exchange]]:
        """Exchange the counts as well."""
        received_WC = exchange_evenly(counts_WC, self._group)
        splits = zip(counts_WC.t().tolist(), received_WC.t().tolist(), strict=True)
        return received_WC, [FlatExchange(self._group, self._line, sent, received) for sent, received in splits]


@dataclass(frozen=True)
class FlatExchange:
    """Rows that go straight where they are to be.

    Attributes:
        sent, received: rows for and from each rank.
    """

    group: dist.ProcessGroup
    line: Line
    sent: Sequence[int]
    received: Sequence[int]

    def send(self, rows: Tensor) -> Tensor:
        """Send rows."""
        return move_rows(rows, self, False)

    def send_back(self, rows: Tensor) -> Tensor:
        """Send rows back."""
        return move_rows(rows, self, True)

    def begin(self, rows: Tensor, back: bool) -> Arrival:
        """Begin to do either."""
        return self.line.begin(lambda: self.move(rows, back))

    def move(self, rows: Tensor, back: bool) -> Tensor:
        """Do either, without a gradient, and wait."""
        sent, received = (self.received, self.sent) if back else (self.sent, self.received)
        out = new_rows(rows, sum(received))
        all_to_all(out, rows.contiguous(), received, sent, self.group)
        return out


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange, back: bool) -> Tensor:
        ctx.exchange, ctx.back = exchange, back
        return exchange.move(rows, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.exchange.move(grad, not ctx.back), None, None


def move_rows(rows: Tensor, exchange: Exchange, back: bool) -> Tensor:
    """Move rows by the `move` of an exchange, and their gradients the other way."""
    return _Exchange.apply(rows, exchange, back)


def exchange_evenly(rows_W: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send row w to rank w; return, as row w, what rank w sent here."""
    received_W = torch.empty_like(rows_W, memory_format=torch.contiguous_format)
    all_to_all(received_W, rows_W.contiguous(), group=group)
    return received_W
