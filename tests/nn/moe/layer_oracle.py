"""The mixture one routed pair at a time."""

import torch
from torch import Tensor

from moesaic.nn.moe.layer import MoELayer
from moesaic.nn.moe.router import Routing


def mix_pairs(layer: MoELayer, hidden_TD: Tensor, routing: Routing) -> Tensor:
    """Add, for each routed pair, the expert's output to its token, and to all tokens what is shared."""
    width = layer.config.expert_width
    out_TD = torch.zeros_like(hidden_TD)
    for token, expert, weight in zip(
        routing.token_ids_N.tolist(), routing.expert_ids_N.tolist(), routing.weights_N, strict=True
    ):
        gate_F, up_F = (layer.experts.gate_up[expert] @ hidden_TD[token]).split(width)
        hidden_F = gate_F * gate_F.sigmoid() * up_F
        out_TD[token] += layer.config.routed_scaling_factor * weight * (layer.experts.down[expert] @ hidden_F)
    if layer.shared is not None:
        shared_TD = layer.shared(hidden_TD)
        gate_T1 = 1.0 if layer.shared_gate is None else (hidden_TD @ layer.shared_gate.weight.t()).sigmoid()
        out_TD += gate_T1 * shared_TD
    return out_TD
