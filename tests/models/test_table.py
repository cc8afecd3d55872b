"""The table of families and presets, and how a recipe's model section is filled from them."""

import pytest

from moesaic.config.load import check_section
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError, UnsupportedError
from moesaic.models.config_json import choose_family
from moesaic.models.model import build_model
from moesaic.models.table import FAMILIES, PRESETS, expand_model, find_family


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_a_model_of_its_family_when_expanded(name: str) -> None:
    config = check_section(ModelConfig, expand_model({"preset": name}), name)
    family = choose_family(config)
    assert family is not None
    assert family.model_type == config.model_type == PRESETS[name]["model_type"]


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("mixtral-8x7b", 46.7e9, 12.9e9),
        ("olmoe-1b-7b", 6.92e9, 1.28e9),
        ("qwen1.5-moe-a2.7b", 14.3e9, 2.7e9),
        ("qwen3-30b-a3b", 30.5e9, 3.35e9),
        ("qwen3-0.6b", 0.596e9, 0.596e9),
        ("llama-3.2-1b", 1.236e9, 1.236e9),
    ],
)
def test_preset_has_the_published_size_when_built(name: str, total: float, active: float) -> None:
    config = check_section(ModelConfig, expand_model({"preset": name}), name)
    found = build_model(config, device="meta").num_parameters()
    assert found == (pytest.approx(total, rel=0.01), pytest.approx(active, rel=0.01))


def test_given_fields_win_when_a_preset_has_them_too() -> None:
    fields = expand_model({"preset": "tiny", "num_hidden_layers": 2})
    assert fields["num_hidden_layers"] == 2
    assert fields["hidden_size"] == PRESETS["tiny"]["hidden_size"]
    assert fields["qk_norm"] == "head"


def test_section_is_left_alone_when_it_names_no_family() -> None:
    assert expand_model({"hidden_size": 8, "qk_norm": "width"}) == {"hidden_size": 8, "qk_norm": "width"}


@pytest.mark.parametrize(("name", "hint"), [("tinny", "did you mean 'tiny'?"), ("", "accepted: "), ([1], "accepted: ")])
def test_preset_is_refused_when_unknown(name: object, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown model\.preset") as caught:
        expand_model({"preset": name})
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(("name", "hint"), [("mixtrall", "did you mean 'mixtral'?"), ({}, "accepted: ")])
def test_family_is_refused_when_unknown(name: object, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown model\.model_type") as caught:
        expand_model({"model_type": name})
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [(family, key, "other") for family, spec in FAMILIES.items() for key in spec.traits],
)
def test_field_is_refused_when_it_contradicts_the_family(family: str, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{key} is 'other', but family '{family}' has") as caught:
        expand_model({"model_type": family, key: value})
    assert caught.value.hint.startswith("set model.model_type to 'moesaic'")


def test_trait_is_accepted_when_it_repeats_the_family() -> None:
    assert expand_model({"model_type": "qwen3_moe", "qk_norm": "head"})["qk_norm"] == "head"


def test_family_lookup_is_refused_when_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="model_type 'gpt2' is not supported") as caught:
        find_family("gpt2")
    assert caught.value.hint == f"supported: {', '.join(sorted(FAMILIES))}"
