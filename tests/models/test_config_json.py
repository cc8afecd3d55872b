"""Between config.json and our configuration: what is read, what is refused, what is written."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError, UnsupportedError
from moesaic.models.config_json import choose_family, read_config, unsaid_fields, write_config
from moesaic.models.table import FAMILIES
from moesaic.testing.tiny import tiny_config
from tests.models.drawn_config import FAMILIES as FAMILY_NAMES
from tests.models.drawn_config import draw_config

SIZE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 8,
}


def _read(family: str, **changes: Any) -> ModelConfig:
    return read_config({**SIZE, "model_type": family, **changes}, "config.json")


def _chosen(**changes: Any) -> str | None:
    family = choose_family(tiny_config(**changes))
    return None if family is None else family.model_type


@pytest.mark.parametrize("family", FAMILY_NAMES)
@given(data=st.data())
def test_config_comes_back_the_same_when_written_and_read(family: str, data: st.DataObject) -> None:
    config = read_config({**data.draw(draw_config(family)), "model_type": family}, "drawn")
    written = write_config(config, "float32")
    back = read_config(written, "written")
    assert written["model_type"] == family
    assert written["torch_dtype"] == "float32"
    assert unsaid_fields(back, FAMILIES[family]) == []
    layers = range(config.num_hidden_layers)
    assert [back.window_of_layer(layer) for layer in layers] == [config.window_of_layer(layer) for layer in layers]
    assert [back.is_moe_layer(layer) for layer in layers] == [config.is_moe_layer(layer) for layer in layers]
    same = config.model_dump(exclude={"head_dim", "num_key_value_heads", "layer_types", "moe_intermediate_size"})
    assert {key: back.model_dump()[key] for key in same} == same


def test_model_is_written_in_our_own_terms_when_no_family_says_it_all() -> None:
    config = tiny_config(router="sigmoid", pregated=True, n_group=1, eos_token_id=[3, 4])
    written = write_config(config, "bfloat16")
    assert written["model_type"] == "moesaic"
    assert read_config({**written, "transformers_version": "5"}, "written") == config


@pytest.mark.parametrize(
    "changes",
    [
        {"router": "sigmoid"},
        {"router": "switch", "num_experts_per_tok": 0},
        {"capacity_factor": 1.25},
        {"n_group": 5, "topk_group": 2},
        {"routed_scaling_factor": 2.0},
        {"shared_expert_intermediate_size": 8},
        {"qk_norm": "width", "mlp_only_layers": [0]},
        {"norm_topk_prob": False},
        {"pregated": True},
        # OLMoE's norms are as wide as the model, whatever the heads measure.
        {"qk_norm": "width", "head_dim": 6},
    ],
)
def test_no_family_is_chosen_when_a_field_is_beyond_them(changes: dict[str, Any]) -> None:
    assert _chosen(**changes) is None


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mixtral", {}),
        ("mixtral", {"router_aux_loss_coef": 0.5, "bias_update_speed": 0.5}),
        ("olmoe", {"qk_norm": "width", "clip_qkv": 1.0}),
        ("qwen3_moe", {"qk_norm": "head", "mlp_only_layers": [0]}),
        ("qwen2_moe", {"shared_expert_intermediate_size": 8, "shared_expert_gate": True, "attention_bias": True}),
        # With one mixture, or none, there is nothing to choose early.
        ("qwen3_moe", {"qk_norm": "head", "mlp_only_layers": [0], "pregated": True}),
        ("llama", {"num_experts": 0, "num_experts_per_tok": 0, "pregated": True}),
        ("llama", {"num_experts": 0, "num_experts_per_tok": 0}),
        ("qwen3", {"num_experts": 0, "num_experts_per_tok": 0, "qk_norm": "head"}),
    ],
)
def test_family_is_found_when_it_says_everything_about_a_model(family: str, changes: dict[str, Any]) -> None:
    assert _chosen(**changes) == family


def test_own_family_is_kept_when_others_would_do_as_well() -> None:
    changes = {"qk_norm": "head", "mlp_only_layers": [0, 1]}
    assert _chosen(**changes) == "qwen3"
    assert _chosen(**changes, model_type="qwen3_moe") == "qwen3_moe"


def test_unsaid_fields_are_named_when_a_family_is_too_narrow() -> None:
    assert unsaid_fields(tiny_config(qk_norm="head", routed_scaling_factor=2.0), FAMILIES["qwen3_moe"]) == [
        "routed_scaling_factor"
    ]
    assert unsaid_fields(tiny_config(qk_norm="head", pregated=True), FAMILIES["qwen3_moe"]) == ["pregated"]
    assert unsaid_fields(tiny_config(), FAMILIES["llama"]) == ["num_experts"]
    assert unsaid_fields(tiny_config(mlp_only_layers=[1]), FAMILIES["mixtral"]) == ["mlp_only_layers"]
    assert unsaid_fields(tiny_config(), FAMILIES["qwen2_moe"]) == ["model_type"]


def test_rope_settings_are_read_alike_when_written_in_old_or_new_terms() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 16}
    new = _read("llama", rope_parameters={"rope_type": "yarn", "rope_theta": 500.0, **scaling})
    old = _read("llama", rope_theta=500.0, rope_scaling={"type": "yarn", **scaling})
    assert new == old
    assert new.rope_theta == 500.0


def test_yarn_starts_from_the_longest_position_when_no_original_length_is_given() -> None:
    config = _read("llama", max_position_embeddings=128, rope_scaling={"type": "yarn", "factor": 2.0})
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_max_position_embeddings == 128


@pytest.mark.parametrize(
    ("changes", "text", "hint"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported", "supported: "),
        ({"model_type": None}, "model_type 'None' is not supported", "supported: "),
        ({"hidden_act": "gelu"}, "config.json: hidden_act is 'gelu'", "this version computes 'silu' only"),
        ({"mlp_bias": True}, "config.json: mlp_bias is True", "this version computes False only"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope type 'dynamic' is not supported", "supported: default, "),
        ({"rope_scaling": {"type": "yarn", "mscale": 2}}, "config.json: mscale is 2", "this version computes plain"),
        ({"partial_rotary_factor": 0.5}, "config.json: partial_rotary_factor is 0.5", "this version computes plain"),
        ({"rope_scaling": {"type": "yarn", "truncate": False}}, "config.json: truncate is False", "this version"),
        ({"rope_scaling": {"type": "yarn", "mscale": 1.0}}, "config.json: mscale is 1.0", "this version"),
        (
            {"rope_scaling": {"type": "yarn", "mscale_all_dim": 1.0}},
            "config.json: mscale_all_dim is 1.0",
            "this version",
        ),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "config.json: the weights are quantised (fp8), which this version does not read",
            "give the checkpoint in bfloat16, float16 or float32",
        ),
        ({"quantization_config": "int4"}, "the weights are quantised (int4)", "give the checkpoint in bfloat16"),
    ],
)
def test_config_is_refused_when_it_asks_for_what_is_not_computed(changes: dict[str, Any], text: str, hint: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        read_config({**SIZE, "model_type": "llama", **changes}, "config.json")
    assert text in caught.value.text
    assert caught.value.hint.startswith(hint)


def test_config_is_accepted_when_it_repeats_what_changes_nothing() -> None:
    plain = _read("llama")
    assert _read("llama", pad_token_id=-1, quantization_config=None) == plain
    assert _read("llama", partial_rotary_factor=1.0, hidden_act=None, mlp_bias=False) == plain
    assert _read("llama", rope_scaling={"rope_type": "default"}, attention_dropout=0.1) == plain


@pytest.mark.parametrize(
    ("family", "changes", "text"),
    [
        ("llama", {"hidden_size": None}, "config.json: 'hidden_size' is missing"),
        ("llama", {"hidden_size": "wide"}, "config.json: 'hidden_size' is 'wide'"),
        ("llama", {"rope_scaling": "yarn"}, "config.json: rope_scaling is 'yarn'"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "config.json: rope_scaling has a factor but no rope_type"),
        ("llama", {"eos_token_id": -1}, "config.json: eos_token_id -1 is below 0"),
        ("llama", {"eos_token_id": [2, -1]}, "config.json: eos_token_id -1 is below 0"),
        ("qwen3_moe", {"num_experts_per_tok": None}, "config.json: 'num_experts_per_tok' is missing"),
        ("mixtral", {"num_local_experts": None}, "config.json: 'num_local_experts' is missing"),
        ("qwen3_moe", {"num_experts": None, "num_local_experts": None}, "config.json: 'num_experts' is missing"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok 9 is not within 1..4"),
        ("qwen3_moe", {"mlp_only_layers": [2]}, "mlp_only_layers names layer 2 of 2"),
    ],
)
def test_config_is_refused_when_a_value_is(family: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(family, **changes)
    assert text in caught.value.text
    if text.endswith("is missing"):
        assert caught.value.hint == "the file is not complete; fetch it again"


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3"])
def test_windows_are_refused_when_layers_do_not_name_theirs(family: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{family}: use_sliding_window without layer_types") as caught:
        _read(family, use_sliding_window=True, sliding_window=4)
    assert caught.value.hint.startswith("add layer_types to config.json")


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "qwen3"])
def test_windows_are_off_when_they_are_not_switched_on(family: str) -> None:
    assert _read(family, sliding_window=4, use_sliding_window=False).window_of_layer(0) is None
