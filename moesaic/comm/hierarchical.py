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

from moesaic.comm.all_to_all import AllToAll, Exchange, FlatAllToAll, FlatExchange, exchange_evenly, move_rows
from moesaic.comm.block import Transposition
from moesaic.comm.line import Arrival, Line


class HierarchicalAllToAll:
    """Ranks are numbered node by node, as many on each.

    Args:
        node: the group of the ranks on this node, L.
        rail: the group of those with this rank's place on each node, M.
    """

    def __init__(self, node: dist.ProcessGroup, rail: dist.ProcessGroup) -> None:
        self._node, self._rail = node, rail
        self._lines = Line(), Line()
        self.size = node.size() * rail.size()

    @property
    def hops(self) -> Sequence[AllToAll]:
        """Return the exchange inside the node and the one along the rail."""
        inside, along = self._lines
        return FlatAllToAll(self._node, inside), FlatAllToAll(self._rail, along)

    def plan(self, counts_WC: Tensor) -> tuple[Tensor, list[Exchange]]:
        """Exchange the counts in two hops as well."""
        # For node m and place l; then from neighbour l for node m; then from place l of node m.
        asked = counts_WC.view(self._rail.size(), self._node.size(), -1)
        passed = exchange_evenly(asked.transpose(0, 1), self._node)
        received = exchange_evenly(passed.transpose(0, 1), self._rail)
        counts = [each.permute(2, 0, 1).tolist() for each in (asked, passed, received)]
        return received.flatten(0, 1), [self._two_hops(*kind) for kind in zip(*counts, strict=True)]

    def _two_hops(self, asked: list[list[int]], passed: list[list[int]], received: list[list[int]]) -> Exchange:
        """Return how one kind of rows moves.

        Args:
            asked: [M, L], rows of this rank for each node and place.
            passed: [L, M], rows of each neighbour that pass through this rank on their way to its place on each node.
            received: [M, L], rows from each node and place.
        """
        inside, along = self._lines
        return _TwoHops(
            Transposition(asked),
            FlatExchange(self._node, inside, _sum_columns(asked), [sum(row) for row in passed]),
            Transposition(passed),
            FlatExchange(self._rail, along, _sum_columns(passed), [sum(row) for row in received]),
        )


@dataclass(frozen=True)
class _TwoHops:
    """Rows that are grouped by place, move inside the node, are grouped by node, and move along the rail."""

    by_place: Transposition
    inside: FlatExchange
    by_node: Transposition
    along: FlatExchange

    def send(self, rows: Tensor) -> Tensor:
        """Send rows: inside the node, then along the rail."""
        return move_rows(rows, self, False)

    def send_back(self, rows: Tensor) -> Tensor:
        """Send rows back: along the rail, then inside the node."""
        return move_rows(rows, self, True)

    def move(self, rows: Tensor, back: bool) -> Tensor:
        """Do either, without a gradient, and wait."""
        return self._move_back_inside(self._move_back_along(rows)) if back else self._pass_on(self._hand_over(rows))

    def begin(self, rows: Tensor, back: bool) -> Arrival:
        """Begin to do either; the hops of several messages overlap."""
        inside, along = self.inside.line, self.along.line
        if back:
            came = along.begin(lambda: self._move_back_along(rows))
            return inside.begin(lambda: self._move_back_inside(came.result()))
        came = inside.begin(lambda: self._hand_over(rows))
        return along.begin(lambda: self._pass_on(came.result()))

    def _hand_over(self, rows: Tensor) -> Tensor:
        return self.inside.move(self.by_place.apply(rows), False)

    def _pass_on(self, rows: Tensor) -> Tensor:
        return self.along.move(self.by_node.apply(rows), False)

    def _move_back_along(self, rows: Tensor) -> Tensor:
        return self.by_node.undo(self.along.move(rows, True))

    def _move_back_inside(self, rows: Tensor) -> Tensor:
        return self.by_place.undo(self.inside.move(rows, True))


def _sum_columns(matrix: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*matrix, strict=True)]
