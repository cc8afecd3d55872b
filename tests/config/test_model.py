"""What a model's configuration derives, and every contradiction that it refuses."""

from typing import Any

import pytest

from moesaic.config.load import check_section
from moesaic.config.model import RopeScaling
from moesaic.errors import ConfigError
from moesaic.testing.tiny import tiny_config


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_size": 18}, "hidden_size 18 does not divide into 4 num_attention_heads; change either, or give"),
        ({"hidden_size": 20}, "head_dim 5 is odd; rotary embedding needs an even one"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 does not divide into 3 num_key_value_heads"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 num_hidden_layers"),
        (
            {"layer_types": ["sliding_attention"] * 2},
            "layer_types asks for sliding_attention but sliding_window is not set",
        ),
        ({"mlp_only_layers": [0, 2]}, "mlp_only_layers names layer 2 of 2"),
        ({"mlp_only_layers": [-1]}, "mlp_only_layers names layer -1 of 2"),
        ({"num_experts_per_tok": 6}, "num_experts_per_tok 6 is not within 1..5 (num_experts)"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok 0 is not within 1..5 (num_experts)"),
        ({"router": "gshard", "num_experts": 1}, "num_experts_per_tok 2 is not within 1..1 (num_experts)"),
        ({"router": "switch"}, "router 'switch' chooses 1 experts, num_experts_per_tok says 2"),
        ({"n_group": 2}, "num_experts 5 does not divide into 2 n_group"),
        ({"topk_group": 2}, "topk_group 2 exceeds n_group 1"),
        ({"n_group": 5}, "num_experts_per_tok 2 exceeds the 1 experts of topk_group 1 groups"),
        (
            {"router": "expert_choice", "n_group": 5, "topk_group": 2},
            "group-limited choice (n_group 5) needs router softmax or sigmoid",
        ),
        ({"eos_token_id": -1}, "eos_token_id -1 is below 0"),
        ({"eos_token_id": [3, -2]}, "eos_token_id -2 is below 0"),
        ({"shared_expert_gate": True}, "shared_expert_gate needs shared_expert_intermediate_size above 0"),
    ],
)
def test_model_is_refused_when_fields_contradict_each_other(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_config(**changes)
    assert caught.value.text.startswith(f"tiny_config: {text}")
    assert caught.value.hint == "change one of the named values"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rope_type": "yarn"}, "rope_type 'yarn' needs original_max_position_embeddings"),
        ({"rope_type": "llama3"}, "rope_type 'llama3' needs original_max_position_embeddings"),
        (
            {"rope_type": "llama3", "original_max_position_embeddings": 8, "high_freq_factor": 1.0},
            "low_freq_factor 1.0 is not below high_freq_factor 1.0",
        ),
    ],
)
def test_rope_scaling_is_refused_when_it_is_not_complete(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_section(RopeScaling, {"factor": 2.0, **fields}, "rope")


def test_router_settings_are_free_when_a_model_is_dense() -> None:
    assert tiny_config(num_experts=0, num_experts_per_tok=9).num_experts == 0


def test_sizes_are_derived_when_not_given() -> None:
    config = tiny_config(num_key_value_heads=None, moe_intermediate_size=None)
    assert (config.head_channels, config.kv_heads, config.expert_width) == (4, 4, 24)
    given = tiny_config(head_dim=6)
    assert (given.head_channels, given.kv_heads, given.expert_width) == (6, 2, 12)


@pytest.mark.parametrize(("router", "chosen"), [("switch", 1), ("gshard", 2)])
def test_experts_per_token_is_fixed_when_router_is(router: str, chosen: int) -> None:
    assert tiny_config(router=router, num_experts_per_tok=0).experts_per_token == chosen
    assert tiny_config(router=router, num_experts_per_tok=chosen).experts_per_token == chosen


@pytest.mark.parametrize(("given", "ids"), [(None, []), (0, [0]), ([1, 2], [1, 2])])
def test_end_tokens_are_a_list_when_given_as(given: Any, ids: list[int]) -> None:
    assert tiny_config(eos_token_id=given).eos_token_ids == ids


def test_mixtures_stand_on_every_step_but_in_named_layers_when_layers_are_mixed() -> None:
    config = tiny_config(num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    assert [layer for layer in range(6) if config.is_moe_layer(layer)] == [1, 5]


def test_window_is_that_of_the_layer_when_layers_differ() -> None:
    layered = tiny_config(sliding_window=3, layer_types=["full_attention", "sliding_attention"])
    assert [layered.window_of_layer(layer) for layer in range(2)] == [None, 3]
    assert [tiny_config(sliding_window=3).window_of_layer(layer) for layer in range(2)] == [3, 3]
    assert tiny_config().window_of_layer(0) is None
