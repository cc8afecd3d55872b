"""Bringing tokens to the experts and the results back.

A dispatcher is the one thing of the layer that knows where experts live. The local one has them all at hand.
"""

from typing import Protocol

from torch import Tensor

from moesaic.nn.moe.router import Routing
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import combine, group_by_expert, permute


class Dispatcher(Protocol):
    """Moves rows to experts and back. `combine` undoes the `dispatch` of the same permutation."""

    def dispatch(self, hidden_TD: Tensor, routing: Routing, num_experts: int) -> tuple[Tensor, Permutation]:
        """Return the rows, grouped by expert, and how to bring them back."""
        ...

    def combine(self, rows_ND: Tensor, routing: Routing, permutation: Permutation) -> Tensor:
        """Return [T, D]: for each token the weighted sum of its rows."""
        ...


class LocalDispatcher:
    """All experts are on this device: a gather, and a weighted sum."""

    def dispatch(self, hidden_TD: Tensor, routing: Routing, num_experts: int) -> tuple[Tensor, Permutation]:
        """Sort the routed rows by expert."""
        permutation = group_by_expert(routing.token_ids_N, routing.expert_ids_N, len(hidden_TD), num_experts)
        return permute(hidden_TD, permutation), permutation

    def combine(self, rows_ND: Tensor, routing: Routing, permutation: Permutation) -> Tensor:
        """Sum each token's rows with its routing weights."""
        return combine(rows_ND, routing.weights_N, permutation)
