"""The ways to compute a mixture of experts that are measured against each other, all on the same weights.

The dense MLPs are the ceiling: as wide as the K experts of a token together, they do the same products without routing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.bench.peer import build_peer_experts
from moesaic.bench.shape import Shape
from moesaic.bench.workload import Inputs, Layer
from moesaic.ops.mixture import mix_experts
from moesaic.ops.quantised_mixture import mix_experts_quantised


@dataclass(frozen=True)
class Prepared:
    """A candidate on the weights of one layer; they are the leaves of its gradients."""

    forward: Callable[[Inputs], Tensor]
    parameters: tuple[nn.Parameter, ...]

    def backward(self, inputs: Inputs) -> tuple[Tensor | None, ...]:
        """Compute the result and the gradients of tokens, routing weights (None if unused) and parameters."""
        leaves = (inputs.hidden_TD, inputs.weights_TK, *self.parameters)
        return torch.autograd.grad(self.forward(inputs), leaves, inputs.grad_TD, allow_unused=True)


@dataclass(frozen=True)
class Candidate:
    """A way to compute, and where it takes part.

    Attributes:
        prepare: bind it to the weights of a layer.
        rival: whose results its own are compared with; None: it is the first.
        max_tokens: no more than these in a case; None: any number.
        only_tokens: these numbers of them alone, in bfloat16; None: any.
        trains: has gradients.
        limit: of its relative error; None: that of the dtype.
    """

    prepare: Callable[[Layer, Shape], Prepared]
    rival: str | None
    max_tokens: int | None = None
    only_tokens: tuple[int, ...] | None = None
    trains: bool = True
    limit: float | None = None

    def takes(self, tokens: int, dtype: torch.dtype) -> bool:
        """Tell whether it takes part in a forward case."""
        if self.only_tokens is not None and (tokens not in self.only_tokens or dtype != torch.bfloat16):
            return False
        return self.max_tokens is None or tokens <= self.max_tokens


def _moesaic(layer: Layer, shape: Shape) -> Prepared:
    def forward(inputs: Inputs) -> Tensor:
        return mix_experts(inputs.hidden_TD, inputs.weights_TK, layer.gate_up, layer.down, inputs.expert_ids_TK)

    return Prepared(forward, (layer.gate_up, layer.down))


def _quantised(bits: int) -> Callable[[Layer, Shape], Prepared]:
    def prepare(layer: Layer, shape: Shape) -> Prepared:
        experts = layer.quantised(bits)

        def forward(inputs: Inputs) -> Tensor:
            return mix_experts_quantised(inputs.hidden_TD, inputs.weights_TK, experts, inputs.expert_ids_TK)

        return Prepared(forward, ())

    return prepare


def _transformers(implementation: str) -> Callable[[Layer, Shape], Prepared]:
    def prepare(layer: Layer, shape: Shape) -> Prepared:
        experts = build_peer_experts(shape, implementation, layer.gate_up, layer.down)
        return Prepared(
            lambda inputs: experts(inputs.hidden_TD, inputs.expert_ids_TK, inputs.weights_TK),
            (layer.gate_up, layer.down),
        )

    return prepare


def _dense(layer: Layer, shape: Shape) -> Prepared:
    gate_up, down = _dense_weights(layer, shape)

    def forward(inputs: Inputs) -> Tensor:
        gate_TF, up_TF = functional.linear(inputs.hidden_TD, gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate_TF) * up_TF, down)

    return Prepared(forward, (gate_up, down))


def _dense_split(layer: Layer, shape: Shape) -> Prepared:
    gate_up, down = _dense_weights(layer, shape)
    gate, up = (nn.Parameter(half) for half in gate_up.detach().chunk(2))

    def forward(inputs: Inputs) -> Tensor:
        gate_TF, up_TF = functional.linear(inputs.hidden_TD, gate), functional.linear(inputs.hidden_TD, up)
        return functional.linear(functional.silu(gate_TF) * up_TF, down)

    return Prepared(forward, (gate, up, down))


def _dense_weights(layer: Layer, shape: Shape) -> tuple[nn.Parameter, nn.Parameter]:
    """See the first K experts' memory as one MLP: no copy, and as cold as theirs."""
    width = shape.chosen * shape.expert_width
    gate_up = layer.gate_up.detach().view(-1, shape.width)[: 2 * width]
    down = layer.down.detach().view(-1)[: width * shape.width].view(shape.width, width)
    return nn.Parameter(gate_up), nn.Parameter(down)


CANDIDATES = {
    "moesaic": Candidate(_moesaic, rival=None),
    # Rounding leaves an error of 0.018 and 0.18 (35 and 15 dB) over all rows; the limits are those of the worst row.
    "moesaic_int8": Candidate(_quantised(8), rival="moesaic", only_tokens=(1, 1024), trains=False, limit=0.05),
    "moesaic_int4": Candidate(_quantised(4), rival="moesaic", only_tokens=(1, 1024), trains=False, limit=0.4),
    "grouped_mm": Candidate(_transformers("grouped_mm"), rival="moesaic"),
    "eager": Candidate(_transformers("eager"), rival="moesaic"),
    # It copies the weights of every pair.
    "batched_mm": Candidate(_transformers("batched_mm"), rival="moesaic", max_tokens=4, trains=False),
    "dense": Candidate(_dense, rival=None),
    "dense_split": Candidate(_dense_split, rival="dense"),
}
# Ratios are against the fastest of these.
RIVALS = {
    "dense": ("dense", "dense_split"),
    "transformers": ("grouped_mm", "eager", "batched_mm"),
    "deepspeed": ("deepspeed",),
}
