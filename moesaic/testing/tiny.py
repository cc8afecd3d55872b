"""Models of a few thousand parameters that have every part of a large one."""

from typing import Any

import torch

from moesaic.config.load import check_section
from moesaic.config.model import ModelConfig
from moesaic.models.model import LanguageModel, build_model
from moesaic.nn.init import init_weights

_TINY = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "max_position_embeddings": 64,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    # Far above the usual 0.02: tiny models are to route, attend and answer differently for different tokens.
    "initializer_range": 0.3,
}


def tiny_config(**changes: Any) -> ModelConfig:
    """Return a small mixture, two of five experts a token, with some fields of `ModelConfig` changed.

    Raises:
        ConfigError: a field is unknown, or the fields contradict each other.
    """
    return check_section(ModelConfig, {**_TINY, **changes}, "tiny_config")


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> LanguageModel:
    """Return a small model in evaluation mode; equal seeds give equal weights.

    Args:
        seed: of the weights.
        dtype: of the weights.
        changes: fields of `ModelConfig`.

    Raises:
        ConfigError: as `tiny_config`.
    """
    config = tiny_config(**changes)
    model = build_model(config)
    init_weights(model, config, seed)
    return model.to(dtype).eval()
