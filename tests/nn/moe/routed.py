"""Routers fed with logits of our choice."""

from typing import Any

import torch
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.nn.moe.router import Router, Routing
from moesaic.testing.tiny import tiny_config


def router_config(num_experts: int, per_token: int, **changes: Any) -> ModelConfig:
    """Return a configuration whose hidden states can be the logits: as wide as there are experts."""
    sizes = {"hidden_size": num_experts, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2}
    return tiny_config(**sizes, num_experts=num_experts, num_experts_per_tok=per_token, **changes)


def identity_router(config: ModelConfig) -> Router:
    """Return a router in evaluation mode whose logits are its input."""
    router = Router(config).eval()
    with torch.no_grad():
        router.weight.copy_(torch.eye(config.num_experts))
    return router


def route_logits(logits: Any, **changes: Any) -> Routing:
    """Route tokens with these logits, in evaluation mode."""
    logits_TE = logits if isinstance(logits, Tensor) else torch.tensor(logits, dtype=torch.float32)
    per_token = changes.pop("num_experts_per_tok", 2)
    return identity_router(router_config(logits_TE.shape[1], per_token, **changes))(logits_TE)


def pairs_of(routing: Routing) -> list[tuple[int, int]]:
    """List the (token, expert) pairs that are computed."""
    return list(zip(routing.token_ids_N.tolist(), routing.expert_ids_N.tolist(), strict=True))
