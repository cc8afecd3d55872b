"""What a config.json leaves out means what it means to transformers."""

from typing import Any

import pytest
import transformers

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.models.config_json import read_config
from moesaic.models.names import SHARED_KEYS
from moesaic.models.table import FAMILIES

# Values that are nobody's default; heads divide by the key/value heads that any family takes for granted.
FULL: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 1152,
    "num_hidden_layers": 3,
    "num_attention_heads": 96,
    "num_key_value_heads": 48,
    "head_dim": 6,
    "intermediate_size": 24,
    "max_position_embeddings": 77,
    "rms_norm_eps": 0.5,
    "tie_word_embeddings": True,
    "initializer_range": 0.5,
    "bos_token_id": 11,
    "eos_token_id": 12,
    "pad_token_id": 13,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 123.0},
    "attention_bias": True,
}
MIXTURE: dict[str, Any] = {
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 7,
    "shared_expert_intermediate_size": 9,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [1],
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.5,
    "router_jitter_noise": 0.5,
    "clip_qkv": 0.5,
    "qkv_bias": False,
}
# What decides the shape of everything is not guessed: a file without it is damaged. Releases of transformers disagree
# on windows without layer_types, hence the refusal that test_config_json.py holds.
REFUSED = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
REFUSED |= {"num_experts", "num_local_experts", "num_experts_per_tok"}
UNTRIED = REFUSED | {"layer_types"}


def _full(family: str) -> dict[str, Any]:
    spec = FAMILIES[family]
    known = {choices[0] for choices in (SHARED_KEYS | dict(spec.keys)).values()} | {"hidden_act", "rope_parameters"}
    full = {**FULL, **MIXTURE, "num_experts": 130, "num_local_experts": 130}
    full = {key: value for key, value in full.items() if key in known}
    if spec.windows == "plain":
        full |= {"sliding_window": 5}
    elif spec.windows != "none":
        full |= {"sliding_window": 5, "use_sliding_window": True}
    if spec.windows == "layered":
        full |= {"layer_types": ["sliding_attention"] * 3}
    return full


def _ours(family: str, fields: dict[str, Any]) -> dict[str, Any]:
    return _effective(read_config({**fields, "model_type": family}, "ours"))


def _theirs(family: str, fields: dict[str, Any]) -> dict[str, Any]:
    return _effective(read_config(transformers.AutoConfig.for_model(family, **fields).to_dict(), "theirs"))


def _effective(config: ModelConfig) -> dict[str, Any]:
    return {**config.model_dump(), "head_dim": config.head_channels, "num_key_value_heads": config.kv_heads}


@pytest.mark.parametrize(
    ("family", "key"), [(family, key) for family in FAMILIES for key in _full(family) if key not in UNTRIED]
)
def test_key_means_what_transformers_takes_it_for_when_left_out(family: str, key: str) -> None:
    fields = _full(family)
    del fields[key]
    assert _ours(family, fields) == _theirs(family, fields)


@pytest.mark.parametrize(
    ("family", "key"), [(family, key) for family in FAMILIES for key in sorted(REFUSED & {*_full(family)})]
)
def test_config_is_refused_when_a_key_that_decides_all_shapes_is_left_out(family: str, key: str) -> None:
    fields = {**_full(family), "model_type": family}
    del fields[key]
    with pytest.raises(ConfigError, match=f"ours: '{key}' is missing") as caught:
        read_config(fields, "ours")
    assert caught.value.hint.startswith("the file is not complete; fetch it again")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_is_tried_when_a_family_reads_it(family: str) -> None:
    keys = SHARED_KEYS | dict(FAMILIES[family].keys)
    assert {choices[0] for choices in keys.values()} <= _full(family).keys()
    assert _ours(family, _full(family)) == _theirs(family, _full(family))
