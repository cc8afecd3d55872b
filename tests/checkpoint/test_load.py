"""Loading a model: dtypes, and every way in which weights do not fit their config.json."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.testing.tiny import tiny_model
from tests.checkpoint.stored import edit_json, read_folder, write_folder

EXPERT = "model.layers.1.block_sparse_moe.experts.4.w2.weight"
NORM = "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of a Mixtral."""
    assert export_model(tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def _rewrite(folder: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace or, with None, remove some stored tensors."""
    tensors = {**read_folder(folder), **changes}
    config = json.loads((folder / "config.json").read_text())
    write_folder(folder, config, {name: tensor for name, tensor in tensors.items() if tensor is not None})


def _refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert caught.value.hint == "config.json and weights belong to different models, or a file is missing or was edited"
    return caught.value.text.removeprefix(f"'{folder}' does not fit its config.json: ")


def test_model_is_ready_for_inference_when_loaded(folder: Path) -> None:
    model = load_model(str(folder))
    assert not model.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    ids_BS = torch.randint(61, (1, 5))
    assert torch.equal(model(ids_BS), tiny_model()(ids_BS))


@pytest.mark.parametrize("changes", [{}, {"model_type": "mixtral"}, {"tie_word_embeddings": True}])
def test_model_is_read_from_a_checkpoint_when_its_run_is_not_finished(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**changes)
    state = {"step": 3, "config": {"model": model.config.model_dump(mode="json")}}
    tensors = {"model": model.state_dict(), "optimizer": {"moment": torch.ones(1)}}
    path = CheckpointStore(tmp_path / "checkpoints", 2, True).save(Snapshot(state, tensors))
    loaded = load_model(path)
    assert loaded.config == model.config
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert not loaded.training


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_weights_have_the_dtype_asked_for_when_loaded(dtype: str, folder: Path) -> None:
    assert {parameter.dtype for parameter in load_model(folder, dtype).parameters()} == {getattr(torch, dtype)}


def test_weights_have_the_dtype_of_most_when_stored_ones_differ(folder: Path) -> None:
    tensors = read_folder(folder)
    _rewrite(folder, {name: tensor.bfloat16() for name, tensor in tensors.items() if name != NORM})
    assert {parameter.dtype for parameter in load_model(folder).parameters()} == {torch.bfloat16}


def test_dtype_is_refused_when_unknown(folder: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'int8'") as caught:
        load_model(folder, "int8")
    assert caught.value.hint == "accepted: bfloat16, float16, float32, float64"


@pytest.mark.parametrize("name", [NORM, EXPERT])
def test_tensor_is_named_when_missing(name: str, folder: Path) -> None:
    _rewrite(folder, {name: None})
    assert _refusal(folder) == f"'{name}' is missing"


@pytest.mark.parametrize(("name", "expected"), [(NORM, [16]), (EXPERT, [16, 12])])
def test_tensor_is_named_with_both_shapes_when_its_shape_is_wrong(name: str, expected: list[int], folder: Path) -> None:
    _rewrite(folder, {name: torch.zeros(3, 2)})
    assert _refusal(folder) == f"'{name}' has shape [3, 2], expected {expected}"


def test_tensor_is_named_with_its_dtype_when_it_is_no_float(folder: Path) -> None:
    _rewrite(folder, {NORM: torch.zeros(16, dtype=torch.int8)})
    assert _refusal(folder) == f"'{NORM}' has dtype I8, expected one of BF16, F16, F32, F64"


def test_first_of_many_problems_is_told_with_their_number_when_a_layer_lacks(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=3)
    # Four projections, two norms, the router and two stacks of experts.
    text = _refusal(folder)
    assert text.endswith("is missing (and 8 more)")
    assert "model.layers.2." in text


def test_config_is_refused_when_layers_are_stored_beyond_its_own(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)
    # Four projections, two norms, the router and three matrices of each of five experts.
    text = _refusal(folder)
    assert text.startswith("'model.layers.1.")
    assert text.endswith("is stored but no part of the model (and 21 more)")


def test_config_is_refused_when_biases_are_stored_that_it_leaves_out(tmp_path: Path) -> None:
    export_model(tiny_model(qk_norm="head", attention_bias=True, attention_output_bias=True), tmp_path)
    edit_json(tmp_path / "config.json", attention_bias=False)
    assert _refusal(tmp_path).endswith("_proj.bias' is stored but no part of the model (and 7 more)")


def test_tables_that_are_computed_anyway_are_passed_over_when_stored(folder: Path) -> None:
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
    _rewrite(folder, {name: torch.ones(2) for name in names})
    assert torch.equal(load_model(folder).decoder.norm.weight, tiny_model().decoder.norm.weight)


@pytest.mark.parametrize(
    "stored", [["model.embed_tokens.weight"], ["lm_head.weight"], ["model.embed_tokens.weight", "lm_head.weight"]]
)
def test_table_is_found_under_either_name_when_the_head_is_tied(stored: list[str], tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=True)
    export_model(model, tmp_path)
    table = model.decoder.embedding.weight
    _rewrite(tmp_path, {"model.embed_tokens.weight": None} | dict.fromkeys(stored, table))
    assert torch.equal(load_model(tmp_path).decoder.embedding.weight, table)


def test_table_is_missing_when_a_tied_model_stores_it_under_no_name(tmp_path: Path) -> None:
    export_model(tiny_model(tie_word_embeddings=True), tmp_path)
    _rewrite(tmp_path, {"model.embed_tokens.weight": None})
    assert _refusal(tmp_path) == "'model.embed_tokens.weight' is missing"


def test_family_is_refused_when_unsupported(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="gpt2")
    with pytest.raises(UnsupportedError, match="model_type 'gpt2' is not supported"):
        load_model(folder)


def test_config_is_refused_when_its_family_has_no_name_for_a_part(folder: Path) -> None:
    edit_json(folder / "config.json", num_local_experts=0)
    with pytest.raises(UnsupportedError, match=r"family 'mixtral' has no name for 'decoder\.layers\.0\.mlp") as caught:
        load_model(folder)
    assert caught.value.hint == "config.json asks for a part it cannot have"


def test_folder_is_refused_when_it_has_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json' is missing"):
        load_model(folder)


def test_balancing_bias_stays_float32_when_weights_are_narrower(tmp_path: Path) -> None:
    model = tiny_model(router="sigmoid", num_hidden_layers=1)
    model.decoder.layers[0].moe.router.selection_bias.copy_(torch.tensor([0.001, 0.0, 0.3, 1.001, -0.5]))
    assert not export_model(model, tmp_path / "model", torch.bfloat16)
    loaded = load_model(tmp_path / "model").state_dict()
    bias = "decoder.layers.0.moe.router.selection_bias"
    assert torch.equal(loaded.pop(bias), model.state_dict()[bias])
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
