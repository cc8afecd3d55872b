"""Whether a step streams whole layers or reads what its tokens ask for: a cost model from measured rates."""

from dataclasses import dataclass
from typing import Literal

# Of a layer's experts that a step touches, beyond which whole layers are read while no rate has been measured.
_MOST_TOUCHED = 0.8
# Pages on their way through, where a step touches more than a layer's share of slots.
_FEW = 16


@dataclass(frozen=True)
class Step:
    """What is known of a step before it begins.

    Attributes:
        touched: experts of a layer that its tokens are expected to choose.
        num_missing: pages of all layers that are not resident.
        page_seconds: to read one page, when many are read; None: not measured yet.
        compute_seconds: of a step of such a size, when nothing had to be waited for; None: likewise.
    """

    touched: float
    num_missing: int
    page_seconds: float | None
    compute_seconds: float | None


@dataclass(frozen=True)
class Mode:
    """How a step gets its pages.

    Attributes:
        name: 'ring': all missing pages of the coming layers, in order, before anybody asks, one slot's page after the
            other's; 'cache': the pages that tokens ask for.
        num_passing: slots kept back for pages on their way through.
    """

    name: Literal["ring", "cache"]
    num_passing: int


def expected_touched(num_experts: int, experts_per_token: int, num_tokens: int) -> float:
    """Return how many of a layer's experts so many tokens choose, if each chooses evenly and on its own."""
    return num_experts * (1 - (1 - experts_per_token / num_experts) ** num_tokens)


def choose_mode(step: Step, num_experts: int, num_layers: int, num_slots: int) -> Mode:
    """Choose by time: a ring reads more, all the while; a cache reads less, and only once a router has spoken."""
    share = num_slots // num_layers
    few = min(_FEW, num_slots // 2) if step.touched > share else 0
    demanded = step.num_missing * step.touched / num_experts
    if step.num_missing == 0:
        return Mode("cache", 0)
    if step.page_seconds is None or step.compute_seconds is None:
        is_ring = step.touched >= _MOST_TOUCHED * num_experts
    else:
        ring = max(step.num_missing * step.page_seconds, step.compute_seconds)
        is_ring = ring < demanded * step.page_seconds + step.compute_seconds
    # Two layers on their way keep the disk busy while one computes; of few slots a quarter, so that most stay a cache.
    return Mode("ring", min(2 * num_experts, max(1, num_slots // 4))) if is_ring else Mode("cache", few)
