"""Bringing tokens to the experts and the results back.

A dispatcher is the one thing of the layer that knows where experts live. The local one has them all at hand.
"""

from typing import Protocol

from torch import Tensor

from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Routing
from moesaic.ops.mixture import mix_experts
from moesaic.ops.permute import group_by_expert


class Dispatcher(Protocol):
    """Takes tokens to their experts, has them computed, and brings the weighted results back."""

    def expect(self, routing: Routing) -> None:
        """Learn what `mix` will be asked for next, while the mixture before is still to be computed.

        Called in pre-gated models only, and not for their first mixture.
        """
        ...

    def mix(self, hidden_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """Return [T, D]: for each token the sum of its experts' outputs times their routing weights."""
        ...


class LocalDispatcher:
    """All experts are on this device: one operation does it all."""

    def expect(self, routing: Routing) -> None:
        """Do nothing: there is nothing to fetch."""

    def mix(self, hidden_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """Mix in place of the tokens; weights in another dtype than the tokens' are cast, as under autocast."""
        permutation = group_by_expert(
            routing.token_ids_N, routing.expert_ids_N, len(hidden_TD), experts.gate_up.shape[0]
        )
        gate_up, down = experts.gate_up.to(hidden_TD.dtype), experts.down.to(hidden_TD.dtype)
        return mix_experts(hidden_TD, routing.weights_N, gate_up, down, permutation)
