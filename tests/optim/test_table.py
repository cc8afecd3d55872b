"""The optimizers of recipes, and what they decay."""

import pytest
import torch

from moesaic.config.optim import OptimConfig
from moesaic.optim.group import group_parameters
from moesaic.optim.lion import Lion
from moesaic.optim.table import OPTIMIZERS, build_optimizer
from moesaic.testing.tiny import tiny_model


def test_groups_decay_matrices_and_experts_only_when_a_model_has_norms_and_biases() -> None:
    model = tiny_model(attention_bias=True, qk_norm="head", num_hidden_layers=1)
    decayed, kept = group_parameters(model, 0.25)
    names = {parameter: name for name, parameter in model.named_parameters()}
    kept_names = {names[parameter] for parameter in kept["params"]}  # type: ignore[attr-defined]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.25, 0.0)
    assert all("norm" in name or name.endswith("bias") for name in kept_names)
    assert kept_names == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)  # type: ignore[arg-type]


def test_adamw_shrinks_matrices_and_keeps_norms_when_gradients_are_zero() -> None:
    model = tiny_model(num_hidden_layers=1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        share = 1.0 if parameter.ndim < 2 else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * share, msg=name)


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_optimizer_takes_rate_betas_and_decay_of_the_recipe_when_built(kind: str) -> None:
    config = OptimConfig(kind=kind, learning_rate=0.02, betas=(0.5, 0.6), weight_decay=0.7)
    optimizer = build_optimizer(tiny_model(num_hidden_layers=1), config)
    first = optimizer.param_groups[0]
    assert (first["lr"], first["betas"], first["weight_decay"]) == (0.02, (0.5, 0.6), 0.7)
    assert isinstance(optimizer, Lion if kind == "lion" else torch.optim.AdamW)


@pytest.mark.parametrize(("kind", "betas"), [("adamw", (0.9, 0.95)), ("lion", (0.9, 0.99))])
def test_optimizer_takes_the_betas_of_its_kind_when_none_are_given(kind: str, betas: tuple[float, float]) -> None:
    optimizer = build_optimizer(tiny_model(num_hidden_layers=1), OptimConfig(kind=kind))
    assert {group["betas"] for group in optimizer.param_groups} == {betas}


def test_adamw_takes_eps_of_the_recipe_when_built() -> None:
    optimizer = build_optimizer(tiny_model(num_hidden_layers=1), OptimConfig(eps=1e-5))
    assert optimizer.param_groups[0]["eps"] == 1e-5
