"""The MoE layer: route, mix, add what is shared."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.nn.linear import Linear
from moesaic.nn.mlp import GatedMlp
from moesaic.nn.moe.balance import balance_loss, sequence_balance_loss, z_loss
from moesaic.nn.moe.batch import WHOLE, Batch
from moesaic.nn.moe.counts import Counts, count
from moesaic.nn.moe.dispatch import Dispatcher, LocalDispatcher
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.load import ExpertLoad
from moesaic.nn.moe.router import Router, Routing


@dataclass(frozen=True)
class MoEOutput:
    """What a layer returns.

    Attributes:
        hidden_BSD: the output; zero at padding.
        losses: unscaled auxiliary losses by name, 'balance_loss' and 'z_loss', as far as these tokens contribute to
            them; none where nobody observes.
        load: choices per expert of the whole batch; None where nobody observes.
        next_routing: the same tokens' choice in the next mixture, if that was asked for.
    """

    hidden_BSD: Tensor
    losses: dict[str, Tensor]
    load: ExpertLoad | None
    next_routing: Routing | None = None


class MoELayer(nn.Module):
    """A mixture of experts in place of a dense MLP.

    Attributes:
        dispatcher: which has the experts computed.
        batch: of which the tokens that `forward` is given are a part.
        observed: whether losses and load are told. For one token they cost as much as its attention.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config)
        self.experts = Experts(config.num_experts, config.hidden_size, config.expert_width)
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.batch: Batch = WHOLE
        self.observed = True
        shared_width = config.shared_expert_intermediate_size
        self.shared = GatedMlp(config.hidden_size, shared_width) if shared_width else None
        self.shared_gate = Linear(config.hidden_size, 1, bias=False) if config.shared_expert_gate else None

    def forward(
        self,
        hidden_BSD: Tensor,
        valid_BS: Tensor | None = None,
        routing: Routing | None = None,
        next_moe: "MoELayer | None" = None,
    ) -> MoEOutput:
        """Mix experts for every token.

        Args:
            hidden_BSD: [B, S, D].
            valid_BS: bool; where False a position is padding and takes part in nothing. None: all are tokens.
            routing: the choice for these tokens, if made before. None: the router makes it from hidden_BSD.
            next_moe: a mixture that routes by hidden_BSD as well. It does so before the experts here are computed,
                and its dispatcher is told.
        """
        valid_T = None if valid_BS is None else valid_BS.reshape(-1)
        flat_TD = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
        hidden_TD = flat_TD if valid_T is None else flat_TD[valid_T]

        routing = self.router(hidden_TD, self.batch) if routing is None else routing
        next_routing = None if next_moe is None else next_moe.route_early(hidden_TD)
        mixed_TD = self.dispatcher.mix(hidden_TD, routing, self.experts)
        if self.config.routed_scaling_factor != 1.0:
            mixed_TD = mixed_TD * self.config.routed_scaling_factor
        if self.shared is not None:
            mixed_TD = mixed_TD + self._shared_output(hidden_TD)

        if valid_T is not None:
            mixed_TD = torch.zeros_like(flat_TD).index_put((valid_T,), mixed_TD)
        mixed_BSD = mixed_TD.view_as(hidden_BSD)
        if not self.observed:
            return MoEOutput(mixed_BSD, {}, None, next_routing)
        losses, counts = self._observe(routing, hidden_BSD, valid_T)
        return MoEOutput(mixed_BSD, losses, counts.load, next_routing)

    def route_early(self, hidden_TD: Tensor) -> Routing:
        """Choose for tokens that come later, and let the dispatcher expect them."""
        routing = self.router(hidden_TD, self.batch)
        self.dispatcher.expect(routing)
        return routing

    def _shared_output(self, hidden_TD: Tensor) -> Tensor:
        assert self.shared is not None, "called with a shared expert"
        out_TD = self.shared(hidden_TD)
        return out_TD if self.shared_gate is None else self.shared_gate(hidden_TD).sigmoid() * out_TD

    def _observe(
        self, routing: Routing, hidden_BSD: Tensor, valid_T: Tensor | None
    ) -> tuple[dict[str, Tensor], Counts]:
        num_experts = self.config.num_experts
        if self.config.balance_loss_scope == "batch":
            counts = count(routing, num_experts, batch=self.batch)
            balance = balance_loss(routing, num_experts, counts)
        else:
            batch, length = hidden_BSD.shape[:2]
            sequence_ids_T = torch.arange(batch, device=hidden_BSD.device).repeat_interleave(length)
            sequence_ids_T = sequence_ids_T if valid_T is None else sequence_ids_T[valid_T]
            counts = count(routing, num_experts, sequence_ids_T, self.batch)
            balance = sequence_balance_loss(routing, num_experts, sequence_ids_T, counts)
        return {"balance_loss": balance, "z_loss": z_loss(routing.logits_TE, counts)}, counts
