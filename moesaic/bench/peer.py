"""The peer of the training benchmark: transformers' Mixtral with torch's grouped products."""

from typing import Any

from torch import nn

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.models.config_json import write_config

_EXPERTS = "grouped_mm"


def build_peer(config: ModelConfig) -> nn.Module:
    """Build transformers' model of the same configuration, its experts computed with `grouped_mm`.

    Raises:
        ConfigError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "the peer of this benchmark is transformers, which is not installed", "pip install transformers"
        ) from None
    fields: dict[str, Any] = write_config(config, "float32")
    peer_config = transformers.AutoConfig.for_model(**{**fields, "output_router_logits": True})
    return transformers.AutoModelForCausalLM.from_config(peer_config, experts_implementation=_EXPERTS)


def transformers_version() -> str:
    """Return the version of the peer."""
    import transformers

    return str(transformers.__version__)
