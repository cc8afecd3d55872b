"""Mixtures of experts that are awkward for kernels, each with the reason it is in the table.

Tiles hold 16 rows, blocks 32; a strip of depth is 16 float32 or 32 bfloat16. Experts are worked on in segments of up to
512 rows, weights in groups of up to 1024 columns: sizes lie below, at and beyond them.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import group_by_expert

Chosen = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MixtureCase:
    """A mixture without its numbers.

    Attributes:
        reason: what goes wrong here in a kernel that is a little wrong.
        width: D.
        hidden_width: F.
        num_experts: E.
        chosen: the experts of each token.
    """

    reason: str
    width: int
    hidden_width: int
    num_experts: int
    chosen: Chosen


@dataclass(frozen=True)
class MixtureInputs:
    """A mixture with its numbers; the first four are leaves that ask for gradients.

    Attributes:
        hidden_TD, weights_N, gate_up, down, permutation: the arguments of `mix_experts`.
        grad_TD: what to send back.
    """

    hidden_TD: Tensor
    weights_N: Tensor
    gate_up: Tensor
    down: Tensor
    permutation: Permutation
    grad_TD: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors that have gradients."""
        return self.hidden_TD, self.weights_N, self.gate_up, self.down


def group_chosen(chosen: Chosen, num_experts: int) -> Permutation:
    """Build the permutation of the experts that each token chose."""
    token_ids = [token for token, experts in enumerate(chosen) for _ in experts]
    expert_ids = [expert for experts in chosen for expert in experts]
    pairs = torch.tensor([token_ids, expert_ids], dtype=torch.int64)
    return group_by_expert(pairs[0], pairs[1], len(chosen), num_experts)


def draw_mixture(case: MixtureCase, dtype: torch.dtype, seed: int = 0) -> MixtureInputs:
    """Draw numbers as a norm and an initialisation would leave them: about one before and after every product.

    Args:
        dtype: of everything but the weights of the pairs, which are float32, or float64 with it.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul_(scale).to(dtype)

    D, F, E = case.width, case.hidden_width, case.num_experts
    num_pairs = sum(map(len, case.chosen))
    weights_N = torch.rand(num_pairs, generator=generator, dtype=torch.float64) + 0.1
    leaves = (
        draw(len(case.chosen), D),
        weights_N.to(torch.promote_types(dtype, torch.float32)),
        draw(E, 2 * F, D, scale=max(D, 1) ** -0.5),
        draw(E, D, F, scale=max(F, 1) ** -0.5),
    )
    grad_TD = draw(len(case.chosen), D)
    for leaf in leaves:
        leaf.requires_grad_()
    return MixtureInputs(*leaves, group_chosen(case.chosen, E), grad_TD)


def choose_at_random(num_tokens: int, num_experts: int, num_choices: int) -> Chosen:
    """Let every token choose as many different experts; the same ones each time."""
    generator = random.Random(num_tokens)
    return tuple(tuple(generator.sample(range(num_experts), num_choices)) for _ in range(num_tokens))


def _runs(*counts: int) -> Chosen:
    """Give expert e counts[e] tokens of its own."""
    return tuple((expert,) for expert, count in enumerate(counts) for _ in range(count))


MIXTURE_CASES = {
    "one token": MixtureCase("one lane of sixteen is used, most experts idle", 64, 32, 8, choose_at_random(1, 8, 2)),
    "one choice": MixtureCase("the sum over pairs has one term", 32, 16, 4, choose_at_random(9, 4, 1)),
    "one expert": MixtureCase("K and E are one", 32, 32, 1, choose_at_random(5, 1, 1)),
    "one expert takes all": MixtureCase(
        "the others' gradients are zeros that somebody writes", 40, 24, 3, _runs(0, 70)
    ),
    "all choose all": MixtureCase("K = E, and E is prime", 24, 40, 5, choose_at_random(6, 5, 5)),
    "most idle": MixtureCase("prime E far above the number of rows", 32, 32, 37, choose_at_random(7, 37, 2)),
    "rows beside a tile": MixtureCase(
        "experts end one row before, at and after a tile, and are none",
        48,
        48,
        9,
        _runs(15, 16, 0, 17, 31, 32, 33, 0, 1),
    ),
    "tiles are full": MixtureCase("weights are read in place, no tail anywhere", 128, 64, 2, _runs(64, 32)),
    "values beyond a strip": MixtureCase(
        "both widths end one value after a strip", 65, 33, 3, choose_at_random(20, 3, 2)
    ),
    "values short of a strip": MixtureCase("both widths end one value before", 63, 31, 3, choose_at_random(20, 3, 2)),
    "half a strip": MixtureCase("full strips of float32, half ones of bfloat16", 48, 16, 3, choose_at_random(20, 3, 2)),
    "odd widths": MixtureCase("rows of bfloat16 begin at odd words", 37, 19, 3, choose_at_random(40, 3, 2)),
    "one value": MixtureCase("D and F are one", 1, 1, 2, choose_at_random(4, 2, 1)),
    "uneven tokens": MixtureCase(
        "none, one, many pairs, an expert twice", 32, 24, 4, ((), (0, 1, 2, 3), (), (1,), (2, 0), (1, 1), ())
    ),
    "cut into segments": MixtureCase("an expert of more rows than a segment", 104, 40, 2, _runs(1100, 3)),
    "narrow in, wide inside": MixtureCase("F > D: several groups of columns", 32, 300, 2, choose_at_random(35, 2, 1)),
    "wide in, narrow inside": MixtureCase("D > F: several strips of depth", 300, 32, 2, choose_at_random(35, 2, 1)),
    "D beyond a group": MixtureCase(
        "D is cut into groups of columns and of depth", 1057, 24, 2, choose_at_random(3, 2, 2)
    ),
    "F beyond a group": MixtureCase(
        "F is cut into groups of columns and of depth", 24, 1057, 2, choose_at_random(3, 2, 2)
    ),
    "no rows": MixtureCase("N = 0: every gradient is zero", 32, 16, 3, ((), (), ())),
    "no tokens": MixtureCase("T = 0", 32, 16, 3, ()),
    "no experts": MixtureCase("E = 0: nobody can choose", 32, 16, 0, ((), ())),
    "no hidden width": MixtureCase("F = 0: sums of nothing", 32, 0, 2, choose_at_random(3, 2, 1)),
    "no width": MixtureCase("D = F = 0: sizes that one must not divide by", 0, 0, 2, choose_at_random(3, 2, 1)),
}
