"""Linear maps of 8 bits in a model: which are replaced, and what they compute."""

import pytest
import torch
from torch import nn

from moesaic.models.model import build_model
from moesaic.nn.linear import Linear
from moesaic.nn.quantised_linear import QuantisedLinear, apply_quantised_linear, list_linear_maps
from moesaic.ops.quant import quantise_matrix
from moesaic.ops.quantised_linear import quantised_linear
from moesaic.testing.tiny import tiny_config, tiny_model

ATTENTION = {"query", "key", "value", "output"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_map_is_that_of_the_rounded_matrix_when_its_buffers_are_set(bias: bool, dtype: torch.dtype) -> None:
    linear = nn.Linear(40, 70, bias=bias)
    matrix = quantise_matrix(linear.weight.detach())
    module = QuantisedLinear(40, 70, bias)
    state = {"blocks": matrix.blocks, "scales": matrix.scales} | ({"bias": linear.bias.detach()} if bias else {})
    module.load_state_dict(state)
    x = torch.randn(2, 3, 40).to(dtype)
    with torch.no_grad():
        expected = quantised_linear(x, matrix) + (linear.bias.to(dtype) if bias else 0)
        assert torch.equal(module(x), expected)


def test_maps_are_all_but_routers_and_gates_when_listed() -> None:
    model = tiny_model(shared_expert_intermediate_size=8, shared_expert_gate=True, mlp_only_layers=[1])
    attention = {f"decoder.layers.{layer}.attention.{name}" for layer in (0, 1) for name in ATTENTION}
    shared = {f"decoder.layers.0.moe.shared.{name}" for name in ("gate", "up", "down")}
    dense = {f"decoder.layers.1.mlp.{name}" for name in ("gate", "up", "down")}
    assert list_linear_maps(model).keys() == attention | shared | dense | {"head"}


@pytest.mark.parametrize("tied", [False, True])
def test_maps_are_replaced_without_memory_when_the_model_has_none(tied: bool) -> None:
    config = tiny_config(tie_word_embeddings=tied, attention_bias=True, shared_expert_intermediate_size=8)
    model = build_model(config, device="meta")
    names, sizes = list(list_linear_maps(model)), model.num_parameters()
    assert apply_quantised_linear(model) is model
    assert all(isinstance(model.get_submodule(name), QuantisedLinear) for name in names)
    assert not any(isinstance(module, Linear) for module in model.modules())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert ("head.blocks" in model.state_dict()) == (not tied)
    assert "decoder.layers.0.attention.query.bias" in model.state_dict()
    assert model.num_parameters() == sizes
