"""Initial weights by the role of each parameter.

Norms start at one and biases at zero. Every other weight is normal with the model's `initializer_range`; the
projections that write into the residual stream are divided by sqrt(2 L), so that its variance does not grow
with depth (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners", 2.3).
"""

import math

import torch
from torch import nn

from moesaic.config.model import ModelConfig

_RESIDUAL_WRITERS = ("attention.output.weight", "mlp.down.weight", "experts.down", "shared.down.weight")


@torch.no_grad()
def init_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter in place; equal seeds give equal weights."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            residual = name.endswith(_RESIDUAL_WRITERS)
            scale = 1 / math.sqrt(2 * config.num_hidden_layers) if residual else 1.0
            parameter.normal_(0.0, config.initializer_range * scale, generator=generator)
