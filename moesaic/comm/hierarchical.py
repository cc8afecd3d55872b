"""The exchange in two hops: inside each node, then between nodes, along rails of ranks with the same place in theirs.

Flat, every rank sends a message to every rank of every other node. Here a rank first hands its rows to the neighbour
who has the place of the one they are for, and that one sends them on together with those of its other neighbours:

    nodes 0 1 and 2 3      flat        0 > 2, 0 > 3, 1 > 2, 1 > 3      four messages between nodes
                           two hops    0 > 1, 1 > 0, then 0 > 2, 1 > 3       two, each twice as long

The rows and their order are those of the flat exchange, bit for bit.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.comm.all_to_all import Exchange, FlatExchange, exchange_evenly


class HierarchicalAllToAll:
    """Ranks are numbered node by node, as many on each.

    Args:
        node: the group of the ranks on this node, L.
        rail: the group of those with this rank's place on each node, M.
    """

    def __init__(self, node: dist.ProcessGroup, rail: dist.ProcessGroup) -> None:
        self._node = node
        self._rail = rail
        self.size = node.size() * rail.size()

    def plan(self, counts_WC: Tensor) -> tuple[Tensor, list[Exchange]]:
        """Exchange the counts in two hops as well."""
        # For node m and place l; then from neighbour l for node m; then from place l of node m.
        asked = counts_WC.view(self._rail.size(), self._node.size(), -1)
        passed = exchange_evenly(asked.transpose(0, 1), self._node)
        received = exchange_evenly(passed.transpose(0, 1), self._rail)
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

    node: dist.ProcessGroup
    rail: dist.ProcessGroup
    asked: Tensor
    passed: Tensor
    received: Tensor

    def send(self, rows: Tensor) -> Tensor:
        """Send rows: inside the node, then along the rail."""
        rows = self._inside().send(_swap_blocks(rows, self.asked))
        return self._along().send(_swap_blocks(rows, self.passed))

    def send_back(self, rows: Tensor) -> Tensor:
        """Send rows back: along the rail, then inside the node."""
        rows = _swap_blocks(self._along().send_back(rows), self.passed.t())
        return _swap_blocks(self._inside().send_back(rows), self.asked.t())

    def _inside(self) -> FlatExchange:
        return FlatExchange(self.node, self.asked.sum(0).tolist(), self.passed.sum(1).tolist())

    def _along(self) -> FlatExchange:
        return FlatExchange(self.rail, self.passed.sum(0).tolist(), self.received.sum(1).tolist())


def _swap_blocks(rows: Tensor, sizes: Tensor) -> Tensor:
    """Reorder blocks of rows, which stand as the entries of a matrix of sizes do, to those of its transpose."""
    blocks = rows.split(sizes.flatten().tolist())
    order = torch.arange(sizes.numel()).view(sizes.shape).t().flatten().tolist()
    return torch.cat([blocks[index] for index in order])
