"""The table of families, and what recipes and checkpoints ask of it. Loads no torch.

To add a family: a folder with `names.py` and `presets.py`, and one entry here.
"""

from collections.abc import Mapping
from typing import Any

from moesaic.errors import ConfigError, UnsupportedError, nearest_hint
from moesaic.models.llama import names as llama
from moesaic.models.llama.presets import PRESETS as LLAMA_PRESETS
from moesaic.models.mixtral import names as mixtral
from moesaic.models.mixtral.presets import PRESETS as MIXTRAL_PRESETS
from moesaic.models.olmoe import names as olmoe
from moesaic.models.olmoe.presets import PRESETS as OLMOE_PRESETS
from moesaic.models.qwen2_moe import names as qwen2_moe
from moesaic.models.qwen2_moe.presets import PRESETS as QWEN2_MOE_PRESETS
from moesaic.models.qwen3 import names as qwen3
from moesaic.models.qwen3.presets import PRESETS as QWEN3_PRESETS
from moesaic.models.qwen3_moe import names as qwen3_moe
from moesaic.models.qwen3_moe.presets import PRESETS as QWEN3_MOE_PRESETS
from moesaic.models.spec import FamilySpec

# The model type of our own folders: every field free, only moesaic reads them.
NATIVE = "moesaic"

_DENSE = {"num_experts": 0, "num_experts_per_tok": 0}

FAMILIES: dict[str, FamilySpec] = {
    "mixtral": FamilySpec(
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        traits={"qk_norm": "none", "norm_topk_prob": True, "attention_bias": False},
        keys=mixtral.KEYS,
        defaults={
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-5,
            "router_aux_loss_coef": 0.001,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        windows="plain",
        tensors=mixtral.TENSORS,
        experts=mixtral.EXPERT_NAMES,
        presets=MIXTRAL_PRESETS,
    ),
    "olmoe": FamilySpec(
        model_type="olmoe",
        architecture="OlmoeForCausalLM",
        traits={"qk_norm": "width"},
        keys=olmoe.KEYS,
        defaults={
            "max_position_embeddings": 4096,
            "norm_topk_prob": False,
            "rms_norm_eps": 1e-5,
            "eos_token_id": 50279,
            "pad_token_id": 1,
        },
        tensors=olmoe.TENSORS,
        experts=olmoe.EXPERT_NAMES,
        presets=OLMOE_PRESETS,
    ),
    "qwen2_moe": FamilySpec(
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        traits={"qk_norm": "none", "shared_expert_gate": True},
        keys=qwen2_moe.KEYS,
        defaults={
            "num_key_value_heads": 16,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "max_position_embeddings": 32768,
            "norm_topk_prob": False,
            "attention_bias": True,
            "router_aux_loss_coef": 0.001,
        },
        windows="layered",
        tensors=qwen2_moe.TENSORS,
        experts=qwen2_moe.EXPERT_NAMES,
        presets=QWEN2_MOE_PRESETS,
    ),
    "qwen3_moe": FamilySpec(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        traits={"qk_norm": "head"},
        keys=qwen3_moe.KEYS,
        defaults={
            "num_key_value_heads": 4,
            "moe_intermediate_size": 768,
            "max_position_embeddings": 32768,
            "norm_topk_prob": False,
            "router_aux_loss_coef": 0.001,
        },
        windows="flagged",
        tensors=qwen3_moe.TENSORS,
        experts=qwen3_moe.EXPERT_NAMES,
        presets=QWEN3_MOE_PRESETS,
    ),
    "llama": FamilySpec(
        model_type="llama",
        architecture="LlamaForCausalLM",
        traits={"qk_norm": "none", **_DENSE},
        keys=llama.KEYS,
        defaults={"bos_token_id": 1, "eos_token_id": 2},
        tensors=llama.TENSORS,
        presets=LLAMA_PRESETS,
    ),
    "qwen3": FamilySpec(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        traits={"qk_norm": "head", **_DENSE},
        keys=qwen3.KEYS,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
        windows="layered",
        tensors=qwen3.TENSORS,
        presets=QWEN3_PRESETS,
    ),
}

PRESETS: dict[str, dict[str, Any]] = {
    name: {"model_type": family.model_type, **fields}
    for family in FAMILIES.values()
    for name, fields in family.presets.items()
}


def find_family(model_type: str) -> FamilySpec:
    """Return a family by its name in config.json.

    Raises:
        UnsupportedError: there is none; the hint lists those there are.
    """
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"model_type '{model_type}' is not supported", f"supported: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]


def expand_model(section: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a recipe's model section from its preset and its family's traits.

    Raises:
        ConfigError: unknown preset or family, or a field that contradicts the family.
    """
    given = dict(section)
    preset = given.pop("preset", None)
    if preset is not None and str(preset) not in PRESETS:
        raise ConfigError(f"unknown model.preset '{preset}'", nearest_hint(str(preset), PRESETS))
    fields = {**PRESETS.get(str(preset), {}), **given}
    model_type = str(fields.get("model_type", NATIVE))
    if model_type == NATIVE:
        return fields
    if model_type not in FAMILIES:
        raise ConfigError(f"unknown model.model_type '{model_type}'", nearest_hint(model_type, [*FAMILIES, NATIVE]))
    traits = FAMILIES[model_type].traits
    for key, value in given.items():
        if key in traits and value != traits[key]:
            raise ConfigError(
                f"model.{key} is {value!r}, but family '{model_type}' has {traits[key]!r}",
                f"set model.model_type to '{NATIVE}' to choose freely (transformers cannot load the result)",
            )
    return {**traits, **fields}
