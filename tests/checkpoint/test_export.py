"""Writing a Hugging Face folder: what it holds, what it replaces, what it refuses to replace.

That transformers reads it, and that not a bit changes, is held by test_round_trip.py.
"""

import json
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.errors import CheckpointError
from moesaic.models.model import LanguageModel
from moesaic.testing.tiny import tiny_model
from moesaic.testing.tolerance import is_close
from tests.models.foreign import foreign_logits, load_foreign

DENSE = {"num_experts": 0, "num_experts_per_tok": 0}


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _assert_same_model(found: LanguageModel, expected: LanguageModel) -> None:
    mine, theirs = found.state_dict(), expected.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_folder_holds_one_file_of_weights_when_it_fits(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "model")
    assert _names(tmp_path / "model") == ["config.json", "generation_config.json", "model.safetensors"]


def test_folder_holds_shards_and_an_index_when_weights_are_larger_than_a_file(tmp_path: Path) -> None:
    model = tiny_model()
    export_model(model, tmp_path / "model", shard_bytes=10_000)
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 10_000 + 4096 for file in files)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == 4 * model.num_parameters()[0]
    _assert_same_model(load_model(tmp_path / "model"), model)


@pytest.mark.parametrize(
    "changes",
    [
        {"router": "sigmoid", "shared_expert_intermediate_size": 8},
        {"router": "switch", "num_experts_per_tok": 0, "capacity_factor": 1.25, "decoder_sparse_step": 2},
        {"qk_norm": "width", "mlp_only_layers": [0], "tie_word_embeddings": True},
    ],
)
def test_model_comes_back_the_same_when_only_we_can_read_it(changes: dict[str, object], tmp_path: Path) -> None:
    model = tiny_model(**changes)
    assert not export_model(model, tmp_path / "model", shard_bytes=5000)
    back = load_model(tmp_path / "model")
    assert back.config == model.config
    _assert_same_model(back, model)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": "head", "norm_topk_prob": False, "mlp_only_layers": [0]},
        {"qk_norm": "width", "clip_qkv": 0.5},
        {**DENSE, "rope_scaling": {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 16}},
        {**DENSE, "qk_norm": "head", "sliding_window": 3, "head_dim": 6},
    ],
)
def test_transformers_computes_the_same_when_a_model_of_no_family_fits_one(
    changes: dict[str, object], tmp_path: Path
) -> None:
    model = tiny_model(**changes)
    assert export_model(model, tmp_path / "model")
    ids_BS = torch.randint(61, (2, 9))
    theirs = foreign_logits(load_foreign(tmp_path / "model", torch.float32), ids_BS)
    assert is_close(model(ids_BS), theirs)


def test_end_tokens_are_written_for_generation_when_set(tmp_path: Path) -> None:
    export_model(tiny_model(eos_token_id=[3, 4], pad_token_id=0), tmp_path / "model")
    written = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert written == {"eos_token_id": [3, 4], "pad_token_id": 0}


def test_tokenizer_files_are_carried_along_when_their_folder_is_given(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
    for name in (*names, "notes.txt"):
        (tmp_path / "tokenizer" / name).write_text(name)
    export_model(tiny_model(), tmp_path / "model", tokenizer=tmp_path / "tokenizer")
    assert all((tmp_path / "model" / name).read_text() == name for name in names)
    assert not (tmp_path / "model" / "notes.txt").exists()


def test_earlier_model_is_replaced_as_a_whole_when_exporting_over_it(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "model", shard_bytes=10_000)
    model = tiny_model(seed=3)
    export_model(model, tmp_path / "model")
    assert _names(tmp_path / "model") == ["config.json", "generation_config.json", "model.safetensors"]
    _assert_same_model(load_model(tmp_path / "model"), model)


def test_model_is_rounded_once_when_exported_in_a_narrower_dtype(tmp_path: Path) -> None:
    model = tiny_model()
    export_model(model, tmp_path / "model", torch.bfloat16)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    _assert_same_model(load_model(tmp_path / "model"), tiny_model(dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["thesis.tex", "pictures/"])
def test_folder_is_not_replaced_when_it_holds_more_than_a_model(name: str, tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path)
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("years of work")
    with pytest.raises(CheckpointError, match=f"it holds '{name.rstrip('/')}', which is no part of one") as caught:
        export_model(tiny_model(seed=3), tmp_path)
    assert caught.value.hint == "name a new or empty folder"
    _assert_same_model(load_model(tmp_path), tiny_model())
