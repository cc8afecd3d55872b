"""The peer in the same process: transformers' Mixtral with torch's grouped products, and its experts alone."""

from typing import Any

import torch
from torch import nn

from moesaic.bench.shape import Shape
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.models.config_json import write_config

_EXPERTS = "grouped_mm"


def build_peer(config: ModelConfig) -> nn.Module:
    """Build transformers' model of the same configuration, its experts computed with `grouped_mm`.

    Raises:
        ConfigError: transformers is not installed.
    """
    _check_installed()
    import transformers

    fields: dict[str, Any] = write_config(config, "float32")
    peer_config = transformers.AutoConfig.for_model(**{**fields, "output_router_logits": True})
    return transformers.AutoModelForCausalLM.from_config(peer_config, experts_implementation=_EXPERTS)


def transformers_version() -> str:
    """Return the version of the peer."""
    import transformers

    return str(transformers.__version__)


def build_peer_experts(shape: Shape, implementation: str, gate_up: nn.Parameter, down: nn.Parameter) -> nn.Module:
    """Build transformers' experts of a layer upon given weights, without a copy.

    Args:
        shape: of the layer.
        implementation: 'eager', 'grouped_mm' or 'batched_mm'.
        gate_up, down: [E, 2F, D] and [E, D, F].

    Raises:
        ConfigError: transformers is not installed.
    """
    _check_installed()
    from transformers.models.olmoe.configuration_olmoe import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeExperts

    config = OlmoeConfig(hidden_size=shape.width, intermediate_size=shape.expert_width, num_experts=shape.experts)
    config._experts_implementation = implementation
    with torch.device("meta"):
        experts = OlmoeExperts(config)
    experts.gate_up_proj, experts.down_proj = gate_up, down
    return experts


def _check_installed() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise ConfigError(
            "the peer of this benchmark is transformers, which is not installed", "pip install transformers"
        ) from None
