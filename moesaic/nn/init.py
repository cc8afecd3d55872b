"""Initial weights by the role of each parameter.

Norms start at one and biases at zero. Every other weight is normal with the model's `initializer_range`; the
projections that write into the residual stream are divided by sqrt(2 L), so that its variance does not grow
with depth (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners", 2.3).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from moesaic.config.model import ModelConfig

_RESIDUAL_WRITERS = ("attention.output.weight", "mlp.down.weight", "experts.down", "shared.down.weight")


@torch.no_grad()
def init_weights(
    model: nn.Module, config: ModelConfig, seed: int, own_part: Callable[[Tensor, Tensor], Tensor] | None = None
) -> None:
    """Fill every parameter in place; equal seeds give equal weights.

    Args:
        own_part: of a model that is spread over processes: from a parameter and all of its values to those that are
            kept here. One parameter at a time is whole.
    """
    generator = torch.Generator().manual_seed(seed)
    for buffer in model.buffers():
        buffer.zero_()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            residual = name.endswith(_RESIDUAL_WRITERS)
            scale = 1 / math.sqrt(2 * config.num_hidden_layers) if residual else 1.0
            values = parameter if own_part is None else torch.empty(parameter.shape, dtype=parameter.dtype)
            values.normal_(0.0, config.initializer_range * scale, generator=generator)
            if own_part is not None:
                parameter.copy_(own_part(parameter, values))
