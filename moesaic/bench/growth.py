"""How the time of a training step grows with the ranks: three costs, fitted to a few sizes, that tell of others.

Each rank has a share of the experts and as many tokens, however many ranks there are. Then, for N ranks, g to a node:

    T(N) = compute * max(1, N / at once)      where processes share processors; else they all compute at once
         + crossing * (1 - g / N)             bytes of tokens for experts on other nodes, by the links between nodes
         + message * peers(N)                 each exchange has a message for every peer, however short it is

Peers are the N - 1 other ranks, and with exchanges in two hops the g - 1 others of the node and the N / g - 1 others of
the rail: that is why it pays at large N. What is summed over ranks grows to twice its bytes at most, in `compute`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, combinations

import torch


@dataclass(frozen=True)
class Growth:
    """The costs of a step.

    Attributes:
        compute_s: of what no number of ranks changes.
        crossing_s: of all bytes of tokens, if they left the node.
        message_s: of a message to one more peer, in all exchanges of a step.
        ranks_per_node: g; None: all ranks are on one.
        at_once: ranks that have a processor of their own; None: all.
    """

    compute_s: float
    crossing_s: float
    message_s: float
    ranks_per_node: int | None = None
    at_once: int | None = None

    def predict(self, num_ranks: int, two_hops: bool = False) -> float:
        """Return the seconds of a step."""
        costs = self.compute_s, self.crossing_s, self.message_s
        factors = _factors(num_ranks, self.ranks_per_node, self.at_once, two_hops)
        return sum(cost * factor for cost, factor in zip(costs, factors, strict=True))


def fit_growth(steps: Mapping[int, float], ranks_per_node: int | None = None, at_once: int | None = None) -> Growth:
    """Fit the costs to the seconds of a step by number of ranks; none is negative.

    Least relative squares over every choice of costs that are not zero, of which there are few.
    """
    rows = torch.tensor([_factors(num, ranks_per_node, at_once) for num in steps], dtype=torch.float64)
    seconds = torch.tensor(list(steps.values()), dtype=torch.float64)
    rows = rows / seconds.unsqueeze(1)
    wanted = torch.ones_like(seconds)
    best, least = torch.zeros(3, dtype=torch.float64), float("inf")
    for columns in chain.from_iterable(combinations(range(3), size) for size in (1, 2, 3)):
        chosen = rows[:, list(columns)]
        if torch.linalg.matrix_rank(chosen) < len(columns):
            continue
        costs = torch.zeros(3, dtype=torch.float64)
        costs[list(columns)] = torch.linalg.lstsq(chosen, wanted.unsqueeze(1), driver="gelsd").solution.squeeze(1)
        error = float((rows @ costs - wanted).square().sum())
        if (costs >= 0).all() and error < least:
            best, least = costs, error
    compute, crossing, message = best.tolist()
    return Growth(compute, crossing, message, ranks_per_node, at_once)


def _factors(
    num_ranks: int, ranks_per_node: int | None, at_once: int | None, two_hops: bool = False
) -> tuple[float, float, float]:
    node = min(num_ranks, ranks_per_node or num_ranks)
    peers = node - 1 + num_ranks // node - 1 if two_hops else num_ranks - 1
    return max(1.0, num_ranks / (at_once or num_ranks)), 1 - node / num_ranks, float(peers)
