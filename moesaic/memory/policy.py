"""Cache policies: which expert page leaves when its layer has no room for another.

    A policy serves one layer, is told what happens to its experts, and gives each a worth; the least leaves.

| name | worth of a page |
| --- | --- |
| decayed | how often its expert was used, each use counting for less with every step since |
| hits | how often it was used since it came, multiplied down from time to time: SE-MoE's Algorithm 2 |
| lfu | how often its expert was used, ever |
| lru | how recently its expert was used |

Of equal worth, the higher expert id leaves. Equal histories give equal victims.

Hit rates in % by pages kept of a layer, when 299 tokens of OLMoE-1B-7B (8 of 64 experts in each of 16 layers) are
replayed from an empty cache; the trace is github.com/sqliteai/waste's tests/trace_olmoe_299.jsonl:

| pages | 8 | 12 | 16 | 24 | 32 | 48 |
| --- | --- | --- | --- | --- | --- | --- |
| decayed | 43.4 | 55.0 | 61.9 | 73.3 | 82.2 | 93.8 |
| hits | 43.4 | 53.9 | 61.2 | 72.6 | 81.7 | 93.7 |
| lfu | 43.4 | 53.5 | 59.9 | 71.2 | 80.6 | 93.4 |
| lru | 43.4 | 52.2 | 59.7 | 69.7 | 79.4 | 93.3 |
| belady, which knows the future | 43.4 | 63.0 | 72.3 | 83.3 | 89.9 | 96.1 |
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Protocol

from moesaic.errors import ConfigError, nearest_hint


class Policy(Protocol):
    """What the cache tells the policy of one layer, and asks of it."""

    def step(self) -> None:
        """Begin a token step of this layer: the uses up to the next one are at the same time."""
        return

    @abstractmethod
    def use(self, expert: int) -> None:
        """Note that an expert is used in this step, whether its page is resident or not."""

    def add(self, expert: int) -> None:
        """Note that an expert's page has become resident."""
        return

    def remove(self, expert: int) -> None:
        """Note that an expert's page has left."""
        return

    @abstractmethod
    def worth(self, expert: int) -> tuple[float, ...]:
        """Return what a resident page is worth now, beside the others of the layer: they compare as tuples do."""

    def victim(self, candidates: Collection[int]) -> int:
        """Return which of these resident experts leaves; there is at least one, and none that must stay."""
        return min(candidates, key=lambda expert: (self.worth(expert), -expert))


class Decayed(Policy):
    """Recency-decayed frequency: n steps after a use, it counts decay**n.

    The score of an expert outlives its page. Forgotten with it, the hit rates above would be 43.4, 53.9, 60.8, 72.1,
    81.6 and 93.7 %.

    What is kept of a score s at step t is ln(s) - t ln(decay). That does not change while the expert is not used, and
    orders experts as their scores do at any one step.

    Args:
        decay: above 0, at most 1, which is plain frequency. 0.94 to 0.97 differ little in the replay; 0.9 gave 43.4,
            54.8, 61.5, 72.4, 81.4 and 93.4 %.

    Raises:
        ConfigError: a decay out of range.
    """

    def __init__(self, decay: float = 0.96) -> None:
        if not 0 < decay <= 1:
            raise ConfigError(f"cache policy got decay of {decay}", "it must lie above 0 and be at most 1")
        self._loss = -math.log(decay)
        self._now = 0
        self._worth: dict[int, tuple[float, int]] = {}

    def step(self) -> None:
        """Let every score decay."""
        self._now += 1

    def use(self, expert: int) -> None:
        """Add one to the score of an expert."""
        lost = self._now * self._loss
        score, _ = self.worth(expert)
        self._worth[expert] = lost + math.log1p(math.exp(score - lost)), self._now

    def worth(self, expert: int) -> tuple[float, float]:
        """Return the score, and for equal ones the step of the last use."""
        return self._worth.get(expert, (-math.inf, -1))


class Lru(Policy):
    """Least recently used; of one step's experts, the one that was named first."""

    def __init__(self) -> None:
        self._num_uses = 0
        self._last: dict[int, int] = {}

    def use(self, expert: int) -> None:
        """Remember when."""
        self._last[expert] = self._num_uses
        self._num_uses += 1

    def worth(self, expert: int) -> tuple[float]:
        """Return how many uses came before the last one of the expert."""
        return (self._last.get(expert, -1),)


class Hits(Policy):
    """The hits of SE-MoE's sparse schedule.

    A use of a resident page is a hit. Every `period` uses, hit or not, all counts are multiplied by `beta`. The page
    with the fewest hits leaves, of those with at least `threshold`.

    Where the paper leaves a choice, or its listing cannot be meant:
        - the fewest of those at the threshold are meant, not pages that are both the fewest of all and at it; if none
          is at it, the fewest of all leaves, as a page must;
        - of equal counts the page that came first leaves, and only that one;
        - a page that comes has one hit, also where another made room; one that leaves is forgotten;
        - full is when every slot is taken, while the listing leaves one empty: the cache's affair, as are writing back
          and copying on;
        - steps are requests for a page, each use of an expert, not evictions; counts fall before the request that
          follows the period, so that a page admitted by its last request is among them.

    Source: Shen et al. (2022), SE-MoE, Algorithm 2, which names no values.

    Args:
        threshold: pages with fewer hits leave last. What it protects is seldom used: no value was better than 0 in
            the replay, and 1 lost up to 5.5 points.
        beta: 0..1.
        period: uses, at least 1.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, threshold: float = 0.0, beta: float = 0.8, period: int = 32) -> None:
        if not threshold >= 0:
            raise ConfigError(f"cache policy got threshold of {threshold}", "it must be 0 or more")
        if not 0 <= beta <= 1:
            raise ConfigError(f"cache policy got beta of {beta}", "it must lie within 0..1")
        if not period >= 1:
            raise ConfigError(f"cache policy got period of {period}", "it must be 1 or more")
        self._threshold, self._beta, self._period = threshold, beta, period
        self._num_uses = 0
        self._num_added = 0
        self._hits: dict[int, float] = {}
        self._order: dict[int, int] = {}

    def use(self, expert: int) -> None:
        """Count a request, and a hit if the page is resident."""
        if self._num_uses == self._period:
            self._hits = {each: hits * self._beta for each, hits in self._hits.items()}
            self._num_uses = 0
        self._num_uses += 1
        if expert in self._hits:
            self._hits[expert] += 1

    def add(self, expert: int) -> None:
        """Begin to count."""
        self._hits[expert] = 1.0
        self._order[expert] = self._num_added
        self._num_added += 1

    def remove(self, expert: int) -> None:
        """Forget the page."""
        del self._hits[expert], self._order[expert]

    def worth(self, expert: int) -> tuple[bool, float, int]:
        """Return whether the page is below the threshold, its hits, and how many came before it."""
        hits = self._hits[expert]
        return hits < self._threshold, hits, self._order[expert]


POLICIES: dict[str, Callable[..., Policy]] = {
    "decayed": Decayed,
    "hits": Hits,
    "lfu": lambda: Decayed(decay=1.0),
    "lru": Lru,
}


def make_policy(name: str, **options: float) -> Policy:
    """Make the policy of one layer, with the options of its class.

    Raises:
        ConfigError: no such policy, or a value out of range.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown cache policy '{name}'", nearest_hint(name, POLICIES))
    return POLICIES[name](**options)
