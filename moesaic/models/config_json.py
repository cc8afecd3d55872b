"""Between a Hugging Face config.json and `ModelConfig`. Loads no torch."""

from collections.abc import Mapping
from typing import Any

from moesaic.config.load import check_section
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError, MoesaicError, UnsupportedError
from moesaic.models.names import SHARED_KEYS
from moesaic.models.spec import FamilySpec
from moesaic.models.table import FAMILIES, NATIVE, find_family

# Fields that change training only: an exported folder need not carry them.
_TRAINING_ONLY = {
    "initializer_range",
    "router_jitter_noise",
    "gshard_random_second",
    "router_aux_loss_coef",
    "balance_loss_scope",
    "router_z_loss_coef",
    "bias_update_speed",
}
_ROPE_FIELDS = {
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
}
_ROPE_FIELDS_OF = {
    "linear": {"rope_type", "factor"},
    "llama3": _ROPE_FIELDS - {"beta_fast", "beta_slow", "attention_factor"} | {"rope_type"},
    "yarn": _ROPE_FIELDS - {"low_freq_factor", "high_freq_factor"} | {"rope_type"},
}
# Rope settings that change the result and that we do not compute, with the value that changes nothing.
# What a window that is switched on by 'use_sliding_window' measures where 'sliding_window' is not given.
_FLAGGED_WINDOW = 4096
_INCOMPLETE = "the file is not complete; fetch it again"
_ROPE_NEUTRAL = {"partial_rotary_factor": 1.0, "truncate": True, "mscale": None, "mscale_all_dim": None}


def read_config(theirs: Mapping[str, Any], origin: str) -> ModelConfig:
    """Build our configuration from a config.json.

    Args:
        theirs: its content.
        origin: its path, for error texts.

    Raises:
        UnsupportedError: a family or a feature that this version does not compute.
        ConfigError: a value of wrong type or range, or a missing one.
    """
    model_type = str(theirs.get("model_type"))
    if model_type == NATIVE:
        ours = {key: value for key, value in theirs.items() if key in ModelConfig.model_fields}
        return check_section(ModelConfig, ours, origin, _INCOMPLETE)
    family = find_family(model_type)
    _check_features(theirs, origin)
    ours = {"model_type": family.model_type, **family.defaults, **_read_fields(theirs, family)}
    ours |= _read_rope(theirs, ours.get("rope_theta", 10_000.0), origin)
    ours |= _read_windows(theirs, family)
    for key in ("num_experts", "num_experts_per_tok"):
        if family.experts is not None and key not in ours:
            raise ConfigError(f"{origin}: '{family.keys[key][0]}' is missing", _INCOMPLETE)
    return check_section(ModelConfig, {**ours, **family.traits}, origin, _INCOMPLETE)


def write_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Return the config.json of a model, in its family's terms where a family can say all of it.

    Args:
        config: the model's.
        dtype: of the stored weights, such as 'bfloat16'.
    """
    family = choose_family(config)
    if family is None:
        fields = config.model_dump(exclude_none=True)
        return {**fields, "model_type": NATIVE, "architectures": ["LanguageModel"], "torch_dtype": dtype}
    return {**_in_family_terms(config, family), "torch_dtype": dtype}


def choose_family(config: ModelConfig) -> FamilySpec | None:
    """Return the family whose config.json says everything about a model; None where only ours does.

    The model's own family is tried first, then families that are dense or not as the model is. Whether one
    fits is found by writing and reading back.
    """
    has_mixture = any(_moe_layers(config))
    candidates = sorted(
        FAMILIES.values(),
        key=lambda family: (family.model_type != config.model_type, (family.experts is None) == has_mixture),
    )
    return next((family for family in candidates if not unsaid_fields(config, family)), None)


def unsaid_fields(config: ModelConfig, family: FamilySpec) -> list[str]:
    """List the fields that a family's config.json would not carry over."""
    has_dense_names = any(".mlp." in name for name in family.tensors)
    if any(_moe_layers(config)) and family.experts is None:
        return ["num_experts"]
    if not all(_moe_layers(config)) and not has_dense_names:
        return ["mlp_only_layers"]
    if family.traits["qk_norm"] == "width" and config.num_attention_heads * config.head_channels != config.hidden_size:
        # transformers makes this norm as wide as the model.
        return ["head_dim"]
    try:
        back = read_config(_in_family_terms(config, family), family.model_type)
    except MoesaicError:
        # A combination that the family cannot even state is unsaid as a whole.
        return ["model_type"]
    mine, theirs = _effective(config), _effective(back)
    return [key for key in mine if mine[key] != theirs[key]]


def _moe_layers(config: ModelConfig) -> list[bool]:
    return [config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)]


def _effective(config: ModelConfig) -> dict[str, Any]:
    """Return the fields that decide a result, with defaults filled in."""
    fields = config.model_dump(exclude={*_TRAINING_ONLY, "model_type", "layer_types", "sliding_window"})
    layers = range(config.num_hidden_layers)
    fields |= {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_channels,
        "windows": [config.window_of_layer(layer) for layer in layers],
        "moe_layers": _moe_layers(config),
        "pregated": config.pregated and sum(_moe_layers(config)) > 1,
    }
    routed = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router")
    if any(fields["moe_layers"]):
        fields |= {
            "moe_intermediate_size": config.expert_width,
            "num_experts_per_tok": config.experts_per_token,
        }
    else:
        fields |= dict.fromkeys(routed)
    if all(fields["moe_layers"]):
        fields["intermediate_size"] = None
    for key in ("decoder_sparse_step", "mlp_only_layers"):
        del fields[key]
    return fields


def _in_family_terms(config: ModelConfig, family: FamilySpec) -> dict[str, Any]:
    ours = config.model_dump(mode="json")
    ours |= {"num_key_value_heads": config.kv_heads, "head_dim": config.head_channels}
    ours["moe_intermediate_size"] = config.expert_width
    if family.experts is not None and "moe_intermediate_size" not in family.keys:
        ours["intermediate_size"] = config.expert_width
    theirs = {choices[0]: ours[key] for key, choices in (SHARED_KEYS | dict(family.keys)).items()}
    theirs |= {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rope_theta": config.rope_theta,
        "rope_scaling": _write_rope(config),
        **family.constants,
    }
    return theirs | _write_windows(config, family)


def _read_fields(theirs: Mapping[str, Any], family: FamilySpec) -> dict[str, Any]:
    """Return what config.json says of our fields. A null says none where a field can be none, and nothing elsewhere."""
    ours: dict[str, Any] = {}
    for key, choices in (SHARED_KEYS | dict(family.keys)).items():
        given = [theirs[choice] for choice in choices if choice in theirs]
        said = [value for value in given if value is not None]
        if said:
            ours[key] = said[0]
        elif given and ModelConfig.model_fields[key].default is None:
            ours[key] = None
    # Early Llama folders write -1 where there is no padding token.
    return {**ours, "pad_token_id": None} if ours.get("pad_token_id") == -1 else ours


def _check_features(theirs: Mapping[str, Any], origin: str) -> None:
    quantization = theirs.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise UnsupportedError(
            f"{origin}: the weights are quantised ({method}), which this version does not read",
            "give the checkpoint in bfloat16, float16 or float32",
        )
    for key, accepted in (("hidden_act", "silu"), ("mlp_bias", False)):
        found = theirs.get(key, accepted)
        if found not in (accepted, None):
            raise UnsupportedError(f"{origin}: {key} is {found!r}", f"this version computes {accepted!r} only")


def _read_rope(theirs: Mapping[str, Any], default_theta: float, origin: str) -> dict[str, Any]:
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"{origin}: rope_scaling is {rope!r}", "it must be an object with a rope_type, or null")
    for key, neutral in _ROPE_NEUTRAL.items():
        found = rope.get(key, theirs.get(key))
        if found not in (neutral, None):
            raise UnsupportedError(f"{origin}: {key} is {found!r}", "this version computes plain rope scaling only")
    theta = rope.get("rope_theta") or theirs.get("rope_theta") or default_theta
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type == "default" and "factor" in rope:
        raise ConfigError(f"{origin}: rope_scaling has a factor but no rope_type: {dict(rope)!r}", _INCOMPLETE)
    if rope_type == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if rope_type not in ("linear", "llama3", "yarn"):
        raise UnsupportedError(
            f"{origin}: rope type '{rope_type}' is not supported", "supported: default, linear, llama3, yarn"
        )
    fields = {key: value for key, value in rope.items() if key in _ROPE_FIELDS and value is not None}
    if rope_type == "yarn":
        fields.setdefault("original_max_position_embeddings", theirs.get("max_position_embeddings"))
    return {"rope_theta": theta, "rope_scaling": {"rope_type": rope_type, **fields}}


def _write_rope(config: ModelConfig) -> dict[str, Any] | None:
    if config.rope_scaling is None:
        return None
    return config.rope_scaling.model_dump(include=_ROPE_FIELDS_OF[config.rope_scaling.rope_type], exclude_none=True)


def _read_windows(theirs: Mapping[str, Any], family: FamilySpec) -> dict[str, Any]:
    window = theirs.get("sliding_window", None if family.windows == "plain" else _FLAGGED_WINDOW)
    if family.windows == "none" or not window:
        return {}
    if family.windows != "plain" and not theirs.get("use_sliding_window", False):
        return {}
    fields: dict[str, Any] = {"sliding_window": window}
    if family.windows == "layered" and theirs.get("layer_types") is not None:
        fields["layer_types"] = theirs["layer_types"]
    elif family.windows == "layered":
        raise UnsupportedError(
            f"{family.model_type}: use_sliding_window without layer_types is ambiguous between releases",
            "add layer_types to config.json: 'full_attention' or 'sliding_attention' for each layer",
        )
    return fields


def _write_windows(config: ModelConfig, family: FamilySpec) -> dict[str, Any]:
    if family.windows == "none":
        return {}
    if family.windows == "plain":
        return {"sliding_window": config.sliding_window}
    flags = {"sliding_window": config.sliding_window, "use_sliding_window": config.sliding_window is not None}
    if family.windows == "flagged":
        return flags
    windows = [config.window_of_layer(layer) for layer in range(config.num_hidden_layers)]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return {**flags, "layer_types": kinds}
