"""The table of optimizers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moesaic.config.optim import OptimConfig
from moesaic.optim.group import group_parameters
from moesaic.optim.lion import Lion


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)


def _lion(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    return Lion(groups, lr=config.learning_rate, betas=config.betas)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "lion": _lion,
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe over all parameters of a model."""
    return OPTIMIZERS[config.kind](group_parameters(model, config.weight_decay), config)
