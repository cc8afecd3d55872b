"""Single experts modules of transformers, built without a model from a config that answers to any name."""

import importlib
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from moesaic.integrations.transformers import register


class AnyConfig:
    """The sizes of tiny experts, whatever a family calls them."""

    def __init__(self, **sizes: Any) -> None:
        self.sizes = {
            "experts": 5,
            "act": "silu",
            "limit": 7.0,
            "cap": 5.0,
            "alpha": 1.7,
            "eps": 1e-6,
        }
        self.sizes |= sizes
        self._experts_implementation = "eager"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return next((size for part, size in self.sizes.items() if part in name), 8)


def experts_classes() -> dict[str, type[nn.Module]]:
    """Return every class of the installed transformers that uses the experts interface, by family and name."""
    found = {}
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        if "\n@use_experts_implementation" in path.read_text(encoding="utf-8"):
            module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
            classes = [
                kind for kind in vars(module).values() if isinstance(kind, type) and hasattr(kind, "_apply_gate")
            ]
            found |= {kind.__name__: kind for kind in classes if kind.__module__ == module.__name__}
    return found


def build_experts(kind: type[nn.Module] = MixtralExperts, **sizes: Any) -> Any:
    """Build experts with random weights, set to transformers' eager loop, with moesaic registered."""
    register()
    experts = kind(AnyConfig(**sizes))
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    return experts


def draw_routing(num_tokens: int = 7, num_experts: int = 5, top_k: int = 2, width: int = 8) -> list[Tensor]:
    """Return hidden states [T, D], expert ids [T, K] and routing weights [T, K], the first and last requiring grad."""
    ids_TK = torch.rand(num_tokens, num_experts).topk(top_k).indices
    hidden_TD, weights_TK = torch.randn(num_tokens, width), torch.rand(num_tokens, top_k)
    return [hidden_TD.requires_grad_(), ids_TK, weights_TK.requires_grad_()]


def call(experts: Any, implementation: str, routing: list[Tensor]) -> Tensor:
    """Call experts by one implementation, and leave them set to it."""
    experts.config._experts_implementation = implementation
    return experts(*routing)


def gradients(experts: Any, implementation: str, routing: list[Tensor]) -> list[Tensor]:
    """Return the gradients of hidden states, routing weights and parameters, weighing each output differently."""
    leaves = [routing[0], routing[2], *experts.parameters()]
    out_TD = call(experts, implementation, routing)
    if not out_TD.requires_grad:  # the eager loop without any pair
        return [torch.zeros_like(leaf) for leaf in leaves]
    weight_TD = torch.arange(out_TD.numel(), dtype=out_TD.dtype).view_as(out_TD).cos()
    return list(torch.autograd.grad((out_TD * weight_TD).sum(), leaves, materialize_grads=True, allow_unused=True))
