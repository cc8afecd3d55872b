"""The table of optimizers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moesaic.config.optim import OptimConfig
from moesaic.optim.group import group_parameters
from moesaic.optim.lion import Lion


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    betas = config.betas or (0.9, 0.95)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.eps, fused=True)


def _lion(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return Lion(groups, lr=config.learning_rate, betas=config.betas or (0.9, 0.99))


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "lion": _lion,
}

# What each keeps for a parameter: 'step' is a scalar, the others have the parameter's shape.
KEPT: dict[str, tuple[str, ...]] = {
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
    "lion": ("exp_avg",),
}


def state_bytes(num_parameters: int, kind: str) -> int:
    """Return the bytes of float32 weights, gradients and moments."""
    return 4 * num_parameters * (2 + len([name for name in KEPT[kind] if name != "step"]))


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe over all parameters of a model."""
    return OPTIMIZERS[config.kind](group_parameters(model, config.weight_decay), config)
