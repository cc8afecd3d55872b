"""Tiny models of transformers' MoE families, and by which code the experts of each are to be computed."""

from typing import Any

from moesaic.integrations.transformers import register
from tests.models.foreign import build_foreign

_SHAPE = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 8,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_LOCAL, _NUM, _ROUTED = {"num_local_experts": 5}, {"num_experts": 5}, {"n_routed_experts": 6}
_LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_LATENT |= {"num_key_value_heads": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1}
_ONE_GROUP = _ROUTED | {"n_group": 1, "topk_group": 1, "n_shared_experts": 1}
_SHARED = {"shared_expert_intermediate_size": 8, "decoder_sparse_step": 1}
_JAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
_JAMBA |= {"expert_layer_period": 1, "expert_layer_offset": 0, "use_mamba_kernels": False}
_LINEAR = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_GEMMA = {"enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0}

# By model_type: what the config has beyond _SHAPE.
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": _LOCAL,
    "olmoe": _NUM,
    "qwen2_moe": _NUM | _SHARED,
    "qwen3_moe": _NUM | {"decoder_sparse_step": 1},
    "qwen3_next": _NUM | _SHARED | _LINEAR | {"layer_types": ["linear_attention", "full_attention"]},
    "deepseek_v2": _ROUTED | _LATENT | {"first_k_dense_replace": 0},
    "deepseek_v3": _ROUTED | _LATENT | {"first_k_dense_replace": 0},
    "deepseek_v4": _ROUTED | {"head_dim": 8},
    "gpt_oss": _LOCAL,
    "granitemoe": _LOCAL,
    "granitemoeshared": _LOCAL | {"shared_intermediate_size": 8},
    "glm4_moe": _ONE_GROUP | {"first_k_dense_replace": 0},
    "dots1": _ONE_GROUP | {"first_k_dense_replace": 0},
    "solar_open": _ONE_GROUP,
    "phimoe": _LOCAL,
    "jamba": _NUM | _JAMBA,
    "ernie4_5_moe": {"moe_num_experts": 5, "moe_k": 2, "moe_layer_start_index": 0, "moe_num_shared_experts": 1},
    "minimax_m2": _LOCAL | {"rotary_dim": 4},
    "hunyuan_v1_moe": _NUM | {"moe_topk": 2},
    "lfm2_moe": _NUM | {"num_dense_layers": 0, "layer_types": ["full_attention", "full_attention"]},
    "flex_olmo": _NUM,
    "nemotron_h": _ONE_GROUP | {"layers_block_type": ["moe", "attention"], "moe_shared_expert_intermediate_size": 8},
    "gemma4_text": _NUM | _GEMMA,
    "cohere2_moe": _NUM,
}
# The families whose experts are not of our kind. All others are to be ours: a fallback of one of them is a bug.
REASONS = {
    "deepseek_v4": "it applies its gate in a way of its own",
    "gpt_oss": "its experts have biases",
    "nemotron_h": "its experts have no gate",
    "gemma4_text": "its activation is GELUTanh",
}
# A second layer that is not like the first.
MIXED = ["qwen3_next", "deepseek_v4", "jamba", "nemotron_h"]


def build_family(family: str, num_layers: int = 2) -> Any:
    """Build a tiny model of a family, computed by transformers' eager loop, with moesaic registered."""
    register()
    config = _SHAPE | FAMILIES[family] | {"num_hidden_layers": num_layers}
    config |= {"layer_types": config["layer_types"][:num_layers]} if "layer_types" in config else {}
    return build_foreign(family, config)
