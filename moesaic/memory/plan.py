"""What fits where and how fast it can be, before anything is loaded: arithmetic alone.

| symbol | meaning |
| --- | --- |
| M | the budget: bytes that the process may hold in all |
| F | what is held as long as the model is: the process itself, its dense core, buffers of the disk |
| R | what is held while a prompt is answered: keys and values, activations |
| L, E, K | layers with experts, experts of each, experts that a token chooses in each |
| Y, y | bytes of a page in memory, and of the files that it is read from |
| s, h | slots for pages, at most L E; share of the pages asked for that are in one, the hit rate |
| A, X | bytes that a token reads of memory; of files if no page were in a slot, X = L K y |

    s = min(L E, (M - F - R) // Y), and M is refused if s < min(L E, K)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from moesaic.errors import MemoryBudgetError
from moesaic.memory.mode import expected_touched
from moesaic.units import format_bytes

# Hit rate by the share of a layer's pages that are kept: the row 'decayed' of the table in `moesaic.memory.policy`.
TRACED = (
    (0.0, 0.0),
    (0.125, 0.434),
    (0.1875, 0.55),
    (0.25, 0.619),
    (0.375, 0.733),
    (0.5, 0.822),
    (0.75, 0.938),
    (1, 1),
)


@dataclass(frozen=True)
class ModelSizes:
    """What a model asks for, and what answering one prompt does.

    Attributes:
        fixed: F by purpose, bytes.
        request: R by purpose, bytes.
        page_bytes, stored_page_bytes: Y and y; 0 without experts.
        num_layers, num_experts, experts_per_token: L, E and K; 0 without experts.
        dense_read_bytes: of the dense core that each token reads: all but what is looked up row by row.
        prompt_tokens: T, of the prompt.
        prompt_operations: that reading the prompt takes, multiplications and additions.
    """

    fixed: Mapping[str, int]
    request: Mapping[str, int]
    page_bytes: int
    stored_page_bytes: int
    num_layers: int
    num_experts: int
    experts_per_token: int
    dense_read_bytes: int
    prompt_tokens: int
    prompt_operations: float

    @property
    def num_pages(self) -> int:
        """Return L E."""
        return self.num_layers * self.num_experts

    @property
    def taken(self) -> dict[str, int]:
        """Return F + R by purpose: all but pages."""
        return {**self.fixed, **self.request}

    @property
    def memory_bytes_per_token(self) -> int:
        """Return A, the dense core and K pages of each layer."""
        return self.dense_read_bytes + self.num_layers * self.experts_per_token * self.page_bytes

    @property
    def disk_bytes_per_token(self) -> int:
        """Return X."""
        return self.num_layers * self.experts_per_token * self.stored_page_bytes

    def budget_for(self, num_slots: int) -> int:
        """Return the least budget with so many slots while the prompt is answered."""
        return sum(self.taken.values()) + num_slots * self.page_bytes

    @property
    def least_budget(self) -> int:
        """Return the smallest budget that works: room for the experts of one token in one layer."""
        return self.budget_for(min(self.num_pages, self.experts_per_token))


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second.

    Attributes:
        memory: bytes read of memory, by all cores.
        disk: bytes of pages read from the model's files.
        arithmetic: multiplications and additions, each counted, in products of matrices.
    """

    memory: float
    disk: float
    arithmetic: float


@dataclass(frozen=True)
class Capacity:
    """What a budget has room for.

    Attributes:
        budget: M.
        num_slots: once the model is loaded.
        num_in_use: slots that are left while the prompt is answered.
        num_sections: times that those hold all experts of a layer; with two, one fills while the other is computed.
        share: of all pages that have a slot meanwhile; 1 without experts.
        holdings: bytes held meanwhile, by purpose.
    """

    budget: int
    num_slots: int
    num_in_use: int
    num_sections: int
    share: float
    holdings: Mapping[str, int]


def count_slots(
    budget: int | None, taken: Mapping[str, int], page_bytes: int, num_pages: int, experts_per_token: int
) -> int:
    """Return how many pages a budget has room for, beside what is taken.

    Args:
        budget: M, bytes; None: no limit.
        taken: bytes by purpose.
        page_bytes: Y.
        num_pages: L E.
        experts_per_token: K.

    Raises:
        MemoryBudgetError: there is no room for K; the text has what is taken, the hint the smallest budget that works.
    """
    if budget is None or num_pages * page_bytes <= budget - sum(taken.values()):
        return num_pages
    num_least = min(num_pages, experts_per_token)
    least = sum(taken.values()) + num_least * page_bytes
    if budget < least:
        parts = [f"{purpose} {format_bytes(num_bytes)}" for purpose, num_bytes in taken.items()]
        parts += [f"{num_least} expert pages of {format_bytes(page_bytes)}"] if num_pages else []
        raise MemoryBudgetError(
            f"a budget of {format_bytes(budget)} is too small: {', '.join(parts)}",
            f"give {math.ceil(least / 2**20)}MiB or more",
        )
    return (budget - sum(taken.values())) // page_bytes


def plan_capacity(sizes: ModelSizes, budget: int) -> Capacity:
    """Return what a budget has room for.

    Raises:
        MemoryBudgetError: as `count_slots`, of what is taken while the prompt is answered.
    """
    pages = sizes.page_bytes, sizes.num_pages, sizes.experts_per_token
    num_in_use = count_slots(budget, sizes.taken, *pages)
    return Capacity(
        budget,
        count_slots(budget, sizes.fixed, *pages),
        num_in_use,
        num_in_use // sizes.num_experts if sizes.num_experts else 0,
        num_in_use / sizes.num_pages if sizes.num_pages else 1.0,
        {**sizes.taken, "expert pages": num_in_use * sizes.page_bytes},
    )


def expect_traced_hits(share: float) -> float:
    """Return the hit rate for routing as uneven as in one recorded text, by the share of pages that are in slots.

    Linear between the values of the table in `moesaic.memory.policy`: 299 tokens of OLMoE-1B-7B, 8 of 64 experts,
    replayed with the policy 'decayed'. Other models, texts and batches differ. Of even routing the hit rate is the
    share itself.
    """
    for (left, low), (right, high) in pairwise(TRACED):
        if share <= right:
            return low + (high - low) * (share - left) / (right - left)
    return 1.0


def expect_decode_rate(sizes: ModelSizes, rates: Rates, hit_rate: float) -> tuple[float, float]:
    """Return tokens a second of one sequence: if nothing overlaps, and if everything does.

        1 / (A / B_mem + (1 - h) X / B_disk)  ...  1 / max(A / B_mem, (1 - h) X / B_disk)

    Reading begins once a router has spoken, and experts that are there are computed meanwhile: the truth lies between.
    """
    computing = sizes.memory_bytes_per_token / rates.memory
    reading = (1 - hit_rate) * sizes.disk_bytes_per_token / rates.disk
    return 1 / (computing + reading), 1 / max(computing, reading)


def expect_prompt_seconds(sizes: ModelSizes, rates: Rates, num_resident: int) -> float:
    """Return the seconds to read the prompt in one pass, at least.

        max(operations / arithmetic, (L E - resident) y (touched / E) / B_disk)

    with E (1 - (1 - K / E)**T) experts of a layer touched if routing is even: nearly all, from a few dozen tokens on.
    """
    if not sizes.num_pages:
        return sizes.prompt_operations / rates.arithmetic
    touched = expected_touched(sizes.num_experts, sizes.experts_per_token, sizes.prompt_tokens) / sizes.num_experts
    missing = (sizes.num_pages - num_resident) * sizes.stored_page_bytes * touched
    return max(sizes.prompt_operations / rates.arithmetic, missing / rates.disk)
