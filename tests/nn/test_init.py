"""Initial weights by the role of each parameter."""

import math

import pytest
import torch

from moesaic.testing.tiny import tiny_model


def test_initial_weights_have_the_spread_of_their_role_when_a_model_is_built() -> None:
    model = tiny_model(
        hidden_size=64,
        num_hidden_layers=3,
        mlp_only_layers=[0],
        qk_norm="head",
        attention_bias=True,
        shared_expert_intermediate_size=32,
        initializer_range=0.1,
    )
    writers = ("attention.output.weight", "mlp.down.weight", "experts.down", "shared.down.weight")
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert bool((parameter == 1).all()), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            expected = 0.1 / math.sqrt(6) if name.endswith(writers) else 0.1
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.15), name


def test_initial_weights_are_equal_when_seeds_are() -> None:
    first, second, other = tiny_model(seed=4).state_dict(), tiny_model(seed=4).state_dict(), tiny_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
