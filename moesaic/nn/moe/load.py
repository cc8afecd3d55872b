"""How evenly tokens spread over the experts of a layer."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExpertLoad:
    """Choices per expert over some batch; padding counts nowhere.

    Attributes:
        tokens_per_expert_E: int64, choices that fell on each expert, also those dropped for lack of room.
        num_dropped: int64 scalar, choices that were not computed.
    """

    tokens_per_expert_E: Tensor
    num_dropped: Tensor

    def merged(self, other: "ExpertLoad") -> "ExpertLoad":
        """Return the load over both batches."""
        return ExpertLoad(self.tokens_per_expert_E + other.tokens_per_expert_E, self.num_dropped + other.num_dropped)

    @property
    def shares_E(self) -> Tensor:  # noqa: N802 - a tensor, so named by its shape
        """Share of all choices that fell on each expert, float64; equal shares where there were none."""
        counts_E = self.tokens_per_expert_E.double()
        return counts_E / counts_E.sum() if counts_E.sum() > 0 else torch.full_like(counts_E, 1 / len(counts_E))

    @property
    def max_violation(self) -> float:
        """(max load - mean load) / mean load (Wang et al., 2024): 0 when even, E - 1 when one takes all."""
        return float(self.shares_E.max() * len(self.shares_E) - 1)

    @property
    def entropy(self) -> float:
        """Entropy of the shares over log E: 1 when even or E is 1, 0 when one expert takes all."""
        if len(self.shares_E) == 1:
            return 1.0
        return float(torch.special.entr(self.shares_E).sum() / torch.tensor(len(self.shares_E)).double().log())

    @property
    def dead_experts(self) -> int:
        """Experts that no token chose."""
        return int((self.tokens_per_expert_E == 0).sum())

    @property
    def dropped_share(self) -> float:
        """Share of the choices that were not computed."""
        return float(self.num_dropped / self.tokens_per_expert_E.sum().clamp_min(1))


def merge_loads(loads: list[dict[int, ExpertLoad]]) -> dict[int, ExpertLoad]:
    """Merge the loads of several batches, layer by layer."""
    return {layer: reduce(ExpertLoad.merged, (each[layer] for each in loads)) for layer in loads[0]}
