"""Routings that are awkward for kernels, as lists of pairs.

Blocks hold 128 pairs and 32 experts, tiles 1024 columns: sizes lie below, at and beyond them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of tokens and experts, tokens ascending."""

    token_ids_N: Tensor
    expert_ids_N: Tensor
    num_tokens: int
    num_experts: int

    def to(self, device: str) -> tuple[Tensor, Tensor, int, int]:
        """Return the arguments of `group_by_expert`."""
        return self.token_ids_N.to(device), self.expert_ids_N.to(device), self.num_tokens, self.num_experts


def draw_pairs(num_tokens: int, num_experts: int, num_choices: int, seed: int = 0) -> Pairs:
    """Choose experts at random, each at most once a token."""
    chance = torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed))
    expert_ids_N = chance.argsort(dim=1)[:, :num_choices].reshape(-1)
    return Pairs(torch.arange(num_tokens).repeat_interleave(num_choices), expert_ids_N, num_tokens, num_experts)


def _listed(tokens: list[int], experts: list[int], num_tokens: int, num_experts: int) -> Pairs:
    ids = torch.tensor([tokens, experts], dtype=torch.int64)
    return Pairs(ids[0], ids[1], num_tokens, num_experts)


CASES: dict[str, Callable[[], Pairs]] = {
    "one token": lambda: draw_pairs(1, 4, 1),
    "one pair too many for a block": lambda: draw_pairs(43, 8, 3),
    "exactly two blocks": lambda: draw_pairs(64, 8, 4),
    "one expert": lambda: draw_pairs(5, 1, 1),
    "one expert takes all": lambda: _listed(list(range(130)), [1] * 130, 130, 3),
    "every expert for every token": lambda: draw_pairs(3, 5, 5),
    "prime experts": lambda: draw_pairs(7, 37, 2),
    "most experts idle": lambda: draw_pairs(2, 64, 2),
    "tokens without experts": lambda: _listed([1, 1, 3], [2, 0, 0], 5, 3),
    "no rows": lambda: _listed([], [], 3, 2),
    "no tokens": lambda: _listed([], [], 0, 2),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
# Without those that take an oracle long.
each_small_case = pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CASES.items() if len(case().token_ids_N) < 100]
)
