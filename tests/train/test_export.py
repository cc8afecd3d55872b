"""Every architecture trains, and the model folder is read by us and, where a family fits, by transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from moesaic.checkpoint.load import load_model
from moesaic.telemetry.metrics import read_metrics
from moesaic.testing.tolerance import is_close
from moesaic.tokenizer.tokenizer import Tokenizer
from moesaic.train.run import train
from tests.train.conftest import Recipe

SHARED = {"model.shared_expert_intermediate_size": 16}

# What only our own config.json can say.
NATIVE: dict[str, dict[str, Any]] = {
    "sigmoid": {"model.router": "sigmoid", "model.router_z_loss_coef": 0.01},
    "switch": {"model.router": "switch", "model.num_experts_per_tok": 1, "model.capacity_factor": 1.25},
    "gshard": {"model.router": "gshard", "model.capacity_factor": 1.0, "model.eval_capacity_factor": 2.0},
    "expert_choice": {"model.router": "expert_choice"},
    "capacity": {"model.capacity_factor": 0.5, "model.router_jitter_noise": 0.1},
    "groups": {"model.n_group": 2, "model.topk_group": 1},
    "sequence_scope": {"model.router": "sigmoid", "model.balance_loss_scope": "sequence"},
    "shared_expert": SHARED,
    "mixed_layers": {"model.mlp_only_layers": [0], "model.qk_norm": "width", "model.clip_qkv": 2.0},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"model.moe_intermediate_size": None},
    "olmoe": {"model.moe_intermediate_size": None},
    "qwen2_moe": {**SHARED, "model.attention_bias": True},
    "qwen3_moe": {"model.norm_topk_prob": True},
    "llama": {"model.num_experts": 0, "model.num_experts_per_tok": 0, "model.moe_intermediate_size": None},
    "qwen3": {"model.num_experts": 0, "model.num_experts_per_tok": 0, "model.moe_intermediate_size": None},
}
# Softmax routers whose losses differ in training alone: a family says all that decides a result.
TRAINING_ONLY: dict[str, dict[str, Any]] = {
    "z_loss": {"model.router_z_loss_coef": 0.1},
    "sequence_scope": {"model.balance_loss_scope": "sequence"},
    "jitter": {"model.router_jitter_noise": 0.2},
}


def _train(recipe: Recipe, changes: dict[str, Any]) -> tuple[Path, bool]:
    outcome = train(recipe({"train.steps": 3, **changes}))
    rows = read_metrics(outcome.folder.metrics)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] is not None for row in rows)
    return outcome.folder.path, outcome.transformers_can_load


def _model_type(folder: Path) -> str:
    return json.loads((folder / "model" / "config.json").read_text())["model_type"]


@pytest.mark.parametrize("changes", NATIVE.values(), ids=NATIVE)
def test_run_leaves_a_folder_of_our_own_kind_when_no_family_fits(changes: dict[str, Any], recipe: Recipe) -> None:
    folder, transformers_can_load = _train(recipe, changes)
    assert not transformers_can_load
    assert _model_type(folder) == "moesaic"
    logits_BSV = load_model(folder)(torch.arange(20).unsqueeze(0))
    assert logits_BSV.shape == (1, 20, 300)
    assert logits_BSV.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same_logits_when_the_run_was_of_a_family(family: str, recipe: Recipe) -> None:
    folder, transformers_can_load = _train(recipe, {"model.model_type": family, **FAMILIES[family]})
    assert transformers_can_load
    assert _model_type(folder) == family
    ids_BS = torch.randint(300, (2, 24))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    with torch.no_grad():
        assert is_close(load_model(folder)(ids_BS), theirs(ids_BS).logits)


@pytest.mark.parametrize("changes", TRAINING_ONLY.values(), ids=TRAINING_ONLY)
def test_transformers_can_load_the_model_when_a_recipe_changes_training_alone(
    changes: dict[str, Any], recipe: Recipe
) -> None:
    folder, transformers_can_load = _train(recipe, changes)
    assert transformers_can_load
    assert _model_type(folder) == "mixtral"


def test_transformers_reads_the_same_ids_and_end_token_when_given_the_model_folder(recipe: Recipe) -> None:
    folder, _ = _train(recipe, {})
    ours, theirs = Tokenizer.load(folder / "model"), transformers.AutoTokenizer.from_pretrained(folder / "model")
    for text in ("abc def jihg", " two  blanks\n", "naïve 漢字 🙂"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    assert model.config.eos_token_id == theirs.eos_token_id == ours.eos_id
