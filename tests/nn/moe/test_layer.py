"""The MoE layer: values against one routed pair at a time, padding, losses, load and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from moesaic.nn.init import init_weights
from moesaic.nn.moe.layer import MoELayer, MoEOutput
from moesaic.nn.moe.router import ROUTERS
from moesaic.testing.tiny import tiny_config
from moesaic.testing.tolerance import is_close
from tests.nn.moe.layer_oracle import mix_pairs

# One of each router, with the options that change the path through the layer.
VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax, scores as weights": {"norm_topk_prob": False},
    "softmax in groups": {"num_experts": 6, "n_group": 3, "topk_group": 2},
    "softmax with capacity": {"eval_capacity_factor": 0.5},
    "sigmoid": {"router": "sigmoid", "routed_scaling_factor": 2.5},
    "sigmoid in groups": {"router": "sigmoid", "num_experts": 6, "n_group": 3, "topk_group": 2},
    "switch": {"router": "switch", "num_experts_per_tok": 0, "eval_capacity_factor": 1.0},
    "gshard": {"router": "gshard", "num_experts_per_tok": 0, "eval_capacity_factor": 1.0},
    "expert choice": {"router": "expert_choice"},
    "one expert": {"num_experts": 1, "num_experts_per_tok": 1},
    "every expert": {"num_experts_per_tok": 5},
    "shared expert": {"shared_expert_intermediate_size": 4},
    "gated shared expert": {"shared_expert_intermediate_size": 4, "shared_expert_gate": True},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def _layer(dtype: torch.dtype = torch.float32, **changes: Any) -> MoELayer:
    config = tiny_config(**{"hidden_size": 8, "moe_intermediate_size": 3, "initializer_range": 0.5, **changes})
    layer = MoELayer(config)
    init_weights(layer, config, seed=2)
    return layer.to(dtype).eval()


@torch.no_grad()
@each_variant
def test_layer_equals_one_pair_at_a_time_when_variant_is(changes: dict[str, Any]) -> None:
    layer, hidden_BSD = _layer(**changes), torch.randn(2, 5, 8)
    found, hidden_TD = layer(hidden_BSD).hidden_BSD.view(-1, 8), hidden_BSD.view(-1, 8)
    assert is_close(found, mix_pairs(layer, hidden_TD, layer.router(hidden_TD)))


@each_variant
def test_layer_gradients_equal_finite_differences_when_variant_is(changes: dict[str, Any]) -> None:
    layer = _layer(torch.float64, **changes)
    names = [name for name, _ in layer.named_parameters()]
    hidden_BSD = torch.randn(1, 4, 8, dtype=torch.float64, requires_grad=True)

    def run(hidden: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        out: MoEOutput = functional_call(layer, dict(zip(names, parameters, strict=True)), (hidden,))
        return out.hidden_BSD, out.losses["balance_loss"], out.losses["z_loss"]

    assert torch.autograd.gradcheck(run, [hidden_BSD, *layer.parameters()], fast_mode=True)


@each_variant
def test_padding_counts_nowhere_when_it_stands_between_tokens(changes: dict[str, Any]) -> None:
    for scope in ("batch", "sequence"):
        layer = _layer(**changes, balance_loss_scope=scope)
        hidden_BSD = torch.randn(3, 4, 8, requires_grad=True)
        valid_BS = torch.tensor([[True, True, False, True], [False] * 4, [True] * 3 + [False]])
        padded = layer(hidden_BSD, valid_BS)
        other_padding_BSD = torch.where(valid_BS.unsqueeze(-1), hidden_BSD, 100.0)
        same = layer(other_padding_BSD, valid_BS)

        assert torch.equal(padded.hidden_BSD, same.hidden_BSD)
        assert not padded.hidden_BSD[~valid_BS].any()
        assert torch.equal(padded.load.tokens_per_expert_E, same.load.tokens_per_expert_E)
        assert all(torch.equal(padded.losses[name], same.losses[name]) for name in padded.losses)
        (gradient,) = torch.autograd.grad(padded.hidden_BSD.sum(), hidden_BSD)
        assert not gradient[~valid_BS].any()
        if scope == "batch":
            alone = layer(hidden_BSD[valid_BS].unsqueeze(0))
            assert is_close(padded.hidden_BSD[valid_BS], alone.hidden_BSD[0])
            assert torch.equal(padded.losses["balance_loss"], alone.losses["balance_loss"])


@each_variant
def test_layer_gives_zeros_and_zero_losses_when_no_token_is_valid(changes: dict[str, Any]) -> None:
    layer = _layer(**changes).train()
    hidden_BSD = torch.randn(1, 3, 8, requires_grad=True)
    out = layer(hidden_BSD, torch.zeros(1, 3, dtype=torch.bool))
    assert not out.hidden_BSD.any()
    assert [float(loss.detach()) for loss in out.losses.values()] == [0.0, 0.0]
    assert int(out.load.tokens_per_expert_E.sum()) == 0
    (out.hidden_BSD.sum() + out.losses["balance_loss"] + out.losses["z_loss"]).backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert not any(parameter.grad.any() for parameter in layer.parameters())


@each_variant
def test_layer_computes_one_token_when_it_comes_alone(changes: dict[str, Any]) -> None:
    layer = _layer(**changes)
    out = layer(torch.randn(1, 1, 8))
    assert torch.isfinite(out.hidden_BSD).all()
    assert int(out.load.tokens_per_expert_E.sum()) >= 1


def test_losses_differ_by_scope_when_sequences_specialise() -> None:
    layer, by_sequence = _layer(), _layer(balance_loss_scope="sequence")
    hidden_BSD = torch.cat([torch.randn(1, 1, 8).expand(1, 6, 8), torch.randn(1, 1, 8).expand(1, 6, 8)])
    batch, sequence = (float(each(hidden_BSD).losses["balance_loss"].detach()) for each in (layer, by_sequence))
    assert sequence != pytest.approx(batch, rel=1e-3)


def test_load_counts_choices_and_drops_when_capacity_is_short() -> None:
    layer = _layer(router="switch", num_experts_per_tok=0, num_experts=2, eval_capacity_factor=0.5)
    out = layer(torch.randn(1, 1, 8).expand(1, 8, 8))
    assert sorted(out.load.tokens_per_expert_E.tolist()) == [0, 8]
    assert int(out.load.num_dropped) == 6
    assert out.load.dropped_share == 0.75
    assert not out.hidden_BSD[0, 2:].any()


def test_every_router_is_among_the_variants_when_the_table_grows() -> None:
    assert {changes.get("router", "softmax") for changes in VARIANTS.values()} == set(ROUTERS)


def test_layer_keeps_bfloat16_near_float32_when_weights_are_float32() -> None:
    layer, hidden_BSD = _layer(), torch.randn(2, 5, 8).bfloat16()
    narrow, wide = layer(hidden_BSD).hidden_BSD, layer(hidden_BSD.float()).hidden_BSD
    assert narrow.dtype == torch.bfloat16
    assert is_close(narrow, wide)
