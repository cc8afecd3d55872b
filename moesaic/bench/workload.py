"""What the candidates are given: layers of weights, and tokens with their routing."""

import copy
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from moesaic.bench.shape import Shape
from moesaic.ops.quant import QuantisedExperts, quantise_experts

# The popularity of the expert of rank r falls as r to minus this.
ROUTINGS = {"uniform": 0.0, "zipf": 1.2}
# A single token of top-k 4 of 32 reads an eighth of a layer: of these, more than a cache of 480 MiB before it comes
# back to the same layer.
_COLD_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Layer:
    """The weights of a layer's experts, which all candidates share.

    Attributes:
        gate_up, down: [E, 2F, D] and [E, D, F].
        low_bit: the same with 8 or 4 bits, made when first asked for.
        source: the layer whose low-bit weights it copies, for rounding takes seconds; None: it rounds its own.
    """

    gate_up: nn.Parameter
    down: nn.Parameter
    low_bit: dict[int, QuantisedExperts] = field(default_factory=dict)
    source: "Layer | None" = None

    def quantised(self, bits: int) -> QuantisedExperts:
        """Return the experts with weights of 8 or 4 bits, in memory of their own."""
        if bits not in self.low_bit:
            if self.source is None:
                self.low_bit[bits] = quantise_experts(self.gate_up.detach(), self.down.detach(), bits)
            else:
                self.low_bit[bits] = copy.deepcopy(self.source.quantised(bits))
        return self.low_bit[bits]


@dataclass(frozen=True)
class Inputs:
    """Tokens and their routing.

    Attributes:
        hidden_TD: the tokens.
        expert_ids_TK: int64, distinct within a row.
        weights_TK: of the dtype of the tokens, rows summing to one.
        grad_TD: the gradient that comes back to the result.
    """

    hidden_TD: Tensor
    expert_ids_TK: Tensor
    weights_TK: Tensor
    grad_TD: Tensor


def count_cold_layers(shape: Shape, dtype: torch.dtype) -> int:
    """Return how many layers, visited in turn, have their weights come from memory and not from a cache."""
    return math.ceil(_COLD_BYTES / (shape.experts * shape.expert_size * dtype.itemsize))


def build_layers(shape: Shape, dtype: torch.dtype, num_layers: int) -> list[Layer]:
    """Build layers; after the first one they are its weights shifted, which takes no random numbers."""
    gate_up = torch.empty(shape.experts, 2 * shape.expert_width, shape.width, dtype=dtype)
    down = torch.empty(shape.experts, shape.width, shape.expert_width, dtype=dtype)
    gate_up.normal_(std=shape.width**-0.5)
    down.normal_(std=shape.expert_width**-0.5)
    layers = [Layer(nn.Parameter(gate_up), nn.Parameter(down))]
    for index in range(1, num_layers):
        rolled = nn.Parameter(gate_up.roll(index)), nn.Parameter(down.roll(index))
        layers.append(Layer(*rolled, source=layers[0]))
    return layers


def draw_inputs(shape: Shape, dtype: torch.dtype, routing: str, seed: int) -> Inputs:
    """Draw tokens and, for each, distinct experts by their popularity."""
    random = torch.Generator().manual_seed(seed)
    ranks_E = torch.arange(1, shape.experts + 1)[torch.randperm(shape.experts, generator=random)]
    popularity_TE = (ranks_E.float() ** -ROUTINGS[routing]).expand(shape.tokens, -1)
    weights_TK = torch.rand(shape.tokens, shape.chosen, generator=random) + 0.1
    return Inputs(
        hidden_TD=torch.randn(shape.tokens, shape.width, generator=random).to(dtype).requires_grad_(),
        expert_ids_TK=popularity_TE.multinomial(shape.chosen, generator=random),
        weights_TK=(weights_TK / weights_TK.sum(1, keepdim=True)).to(dtype).requires_grad_(),
        grad_TD=torch.randn(shape.tokens, shape.width, generator=random).to(dtype),
    )
