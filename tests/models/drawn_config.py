"""Random tiny configurations of each family, in transformers' own terms."""

from typing import Any

from hypothesis import strategies as st

FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "llama", "qwen3")
DENSE_LAYERS = ("qwen2_moe", "qwen3_moe")
OWN_HEAD_DIM = ("mixtral", "qwen3_moe", "llama", "qwen3")
BIASED = ("olmoe", "qwen3_moe", "llama", "qwen3")


@st.composite
def draw_config(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Draw the arguments of a family's configuration class."""
    layers, kv_heads = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3]))
    heads = kv_heads * draw(st.sampled_from([1, 2]))
    config = {
        "vocab_size": draw(st.integers(11, 40)),
        "hidden_size": heads * draw(st.sampled_from([4, 6, 8])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": draw(st.integers(3, 20)),
        "max_position_embeddings": 64,
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5])),
        "tie_word_embeddings": draw(st.booleans()),
        "rope_parameters": draw(_draw_rope()),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family in OWN_HEAD_DIM:
        config["head_dim"] = draw(st.sampled_from([4, 6, 10]))
    if family in BIASED:
        config["attention_bias"] = draw(st.booleans())
    if family not in ("llama", "qwen3"):
        config |= draw(_draw_mixture(family, layers))
    return config | draw(_draw_windows(family, layers))


@st.composite
def _draw_mixture(draw: st.DrawFn, family: str, layers: int) -> dict[str, Any]:
    experts = draw(st.sampled_from([1, 2, 4, 5, 7, 8]))
    config: dict[str, Any] = {
        "num_local_experts" if family == "mixtral" else "num_experts": experts,
        "num_experts_per_tok": draw(st.sampled_from([1, (experts + 1) // 2, experts])),
    }
    if family != "mixtral":
        config["norm_topk_prob"] = draw(st.booleans())
    if family == "olmoe":
        config["clip_qkv"] = draw(st.sampled_from([None, 0.5]))
    if family in DENSE_LAYERS:
        config |= {
            "moe_intermediate_size": draw(st.integers(3, 12)),
            "decoder_sparse_step": draw(st.sampled_from([1, 1, 2])),
            "mlp_only_layers": draw(st.sampled_from([[], [0], [layers - 1]])),
        }
    if family == "qwen2_moe":
        config |= {
            "shared_expert_intermediate_size": draw(st.integers(3, 12)),
            "qkv_bias": draw(st.booleans()),
        }
    return config


@st.composite
def _draw_windows(draw: st.DrawFn, family: str, layers: int) -> dict[str, Any]:
    # Not one position: there transformers 5.23 differs with and without its cache.
    window = draw(st.sampled_from([None, 2, 3, 6]))
    if family in ("llama", "olmoe"):
        return {}
    if family == "mixtral":
        return {"sliding_window": window}
    config: dict[str, Any] = {"use_sliding_window": window is not None, "sliding_window": window or 4096}
    if family in ("qwen2_moe", "qwen3") and window is not None:
        kinds = st.sampled_from(["full_attention", "sliding_attention"])
        config["layer_types"] = draw(st.lists(kinds, min_size=layers, max_size=layers))
    return config


@st.composite
def _draw_rope(draw: st.DrawFn) -> dict[str, Any]:
    rope: dict[str, Any] = {
        "rope_type": draw(st.sampled_from(["default", "linear", "llama3", "yarn"])),
        "rope_theta": draw(st.sampled_from([100.0, 10_000.0, 1e6])),
    }
    if rope["rope_type"] != "default":
        rope["factor"] = draw(st.sampled_from([1.5, 4.0]))
    if rope["rope_type"] in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = draw(st.sampled_from([16, 32]))
    if rope["rope_type"] == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([2.0, 4.0]))}
    if rope["rope_type"] == "yarn" and draw(st.booleans()):
        rope |= {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25}
    return rope
