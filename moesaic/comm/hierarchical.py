"""The exchange in two hops: inside each node, then between nodes, along rails of ranks with the same place in theirs.

Flat, every rank sends a message to every rank of every other node. Here a rank first hands its rows to the neighbour
who has the place of the one they are for, and that one sends them on together with those of its other neighbours:

    nodes 0 1 and 2 3      flat        0 > 2, 0 > 3, 1 > 2, 1 > 3      four messages between nodes
                           two hops    0 > 1, 1 > 0, then 0 > 2, 1 > 3       two, each twice as long

The rows and their order are those of the flat exchange, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from moesaic.comm.all_to_all import AllToAll, Exchange, FlatAllToAll, FlatExchange, exchange_evenly, swap_blocks
from moesaic.comm.line import Arrival, Line


@dataclass(frozen=True)
class _Hop:
    """One of the two: ranks, and their line."""

    group: dist.ProcessGroup
    line: Line

    def exchange(self, sent: Tensor, received: Tensor) -> FlatExchange:
        return FlatExchange(self.group, self.line, sent.tolist(), received.tolist())


class HierarchicalAllToAll:
    """Ranks are numbered node by node, as many on each.

    Args:
        node: the group of the ranks on this node, L.
        rail: the group of those with this rank's place on each node, M.
    """

    def __init__(self, node: dist.ProcessGroup, rail: dist.ProcessGroup) -> None:
        self._node = _Hop(node, Line())
        self._rail = _Hop(rail, Line())
        self.size = node.size() * rail.size()

    @property
    def hops(self) -> Sequence[AllToAll]:
        """Return the exchange inside the node and the one along the rail."""
        return FlatAllToAll(self._node.group, self._node.line), FlatAllToAll(self._rail.group, self._rail.line)

    def plan(self, counts_WC: Tensor) -> tuple[Tensor, list[Exchange]]:
        """Exchange the counts in two hops as well."""
        # For node m and place l; then from neighbour l for node m; then from place l of node m.
        asked = counts_WC.view(self._rail.group.size(), self._node.group.size(), -1)
        passed = exchange_evenly(asked.transpose(0, 1), self._node.group)
        received = exchange_evenly(passed.transpose(0, 1), self._rail.group)
        exchanges: list[Exchange] = [
            _TwoHops(self._node, self._rail, asked[..., kind], passed[..., kind], received[..., kind])
            for kind in range(counts_WC.shape[1])
        ]
        return received.flatten(0, 1), exchanges


@dataclass(frozen=True)
class _TwoHops:
    """One kind of rows.

    Attributes:
        asked: [M, L], rows of this rank for each node and place.
        passed: [L, M], rows of each neighbour that pass through this rank on their way to its place on each node.
        received: [M, L], rows from each node and place.
    """

    node: _Hop
    rail: _Hop
    asked: Tensor
    passed: Tensor
    received: Tensor

    def send(self, rows: Tensor) -> Tensor:
        """Send rows: inside the node, then along the rail."""
        rows = self._inside().send(swap_blocks(rows, self.asked))
        return self._along().send(swap_blocks(rows, self.passed))

    def send_back(self, rows: Tensor) -> Tensor:
        """Send rows back: along the rail, then inside the node."""
        rows = swap_blocks(self._along().send_back(rows), self.passed.t())
        return swap_blocks(self._inside().send_back(rows), self.asked.t())

    def begin(self, rows: Tensor, back: bool) -> Arrival:
        """Begin to do either; the hops of several messages overlap."""
        inside, along = self._inside(), self._along()
        if back:
            came = self.rail.line.begin(lambda: swap_blocks(along.move(rows, True), self.passed.t()))
            return self.node.line.begin(lambda: swap_blocks(inside.move(came.result(), True), self.asked.t()))
        came = self.node.line.begin(lambda: inside.move(swap_blocks(rows, self.asked), False))
        return self.rail.line.begin(lambda: along.move(swap_blocks(came.result(), self.passed), False))

    def _inside(self) -> FlatExchange:
        return self.node.exchange(self.asked.sum(0), self.passed.sum(1))

    def _along(self) -> FlatExchange:
        return self.rail.exchange(self.passed.sum(0), self.received.sum(1))
