"""Writing a Hugging Face folder from whatever holds a model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.checkpoint.convert import convert_to_hf
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.errors import CheckpointError, ConfigError
from moesaic.testing.tiny import tiny_model
from moesaic.tokenizer.bpe import train_bpe
from tests.checkpoint.stored import edit_checkpoint, edit_json, read_folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint of a run, as training leaves it."""
    model = tiny_model()
    train_bpe(["some words"], vocab_size=258).save(tmp_path / "run" / "tokenizer")
    store = CheckpointStore(tmp_path / "run" / "checkpoints", 2, True)
    state = {"step": 3, "config": {"model": model.config.model_dump(mode="json")}}
    return store.save(Snapshot(state, {"model": model.state_dict(), "optimizer": {"ignored": torch.ones(1)}}))


def _expect(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    expected = tiny_model(dtype=dtype).state_dict()
    found = load_model(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_checkpoint_of_a_run_becomes_a_model_folder_with_its_tokenizer_when_converted(
    checkpoint: Path, tmp_path: Path
) -> None:
    assert convert_to_hf(str(checkpoint), tmp_path / "new", None)
    _expect(tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").is_file()


def test_checkpoint_is_found_when_named_from_within_its_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    convert_to_hf(".", tmp_path / "new", None)
    assert (tmp_path / "new" / "tokenizer.json").is_file()


def test_checkpoint_is_rounded_when_a_dtype_is_given(checkpoint: Path, tmp_path: Path) -> None:
    convert_to_hf(str(checkpoint), tmp_path / "new", "bfloat16")
    _expect(tmp_path / "new", torch.bfloat16)


def test_model_folder_is_copied_bit_for_bit_when_converted(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "run" / "model")
    for source in (tmp_path / "run", tmp_path / "run" / "model"):
        assert convert_to_hf(str(source), tmp_path / f"new-{source.name}", None)
        first, second = read_folder(tmp_path / "run" / "model"), read_folder(tmp_path / f"new-{source.name}")
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_settings_of_generation_are_carried_along_when_the_source_has_them(tmp_path: Path) -> None:
    export_model(tiny_model(eos_token_id=3), tmp_path / "old")
    told = '{"eos_token_id": [4, 3], "top_p": 0.8}'
    (tmp_path / "old" / "generation_config.json").write_text(told)
    convert_to_hf(str(tmp_path / "old"), tmp_path / "new", None)
    assert (tmp_path / "new" / "generation_config.json").read_text() == told


def test_answer_is_no_when_only_we_can_read_the_folder(tmp_path: Path) -> None:
    export_model(tiny_model(router="sigmoid"), tmp_path / "old")
    assert not convert_to_hf(str(tmp_path / "old"), tmp_path / "new", None)


def test_unknown_dtype_is_refused_before_anything_is_read_when_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        convert_to_hf(str(tmp_path / "none"), tmp_path / "new", "int8")


def _edit_state(path: Path, config: Any) -> None:
    edit_json(path / "state.json", config=config)


def _drop_weight(path: Path) -> None:
    edit_checkpoint(path, "model", lambda name, each: None if name == "decoder.norm.weight" else each)


WEIGHTS = "model/rank-00000.safetensors"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: (path / WEIGHTS).unlink(), "lacks 'model/rank-00000.safetensors', one of its 1 files"),
        (lambda path: _edit_state(path, None), "lacks its recipe"),
        (lambda path: _edit_state(path, {"model": 5}), "lacks its recipe"),
        (lambda path: (path / WEIGHTS).write_bytes(b"half"), "'model/rank-00000.safetensors' has 4 bytes, .* written"),
        (_drop_weight, "does not fit its state.json: 'decoder.norm.weight' is missing"),
    ],
    ids=["no_weights", "no_recipe", "odd_recipe", "cut", "weight_missing"],
)
def test_checkpoint_is_refused_and_nothing_written_when_it_has(
    damage: Any, named: str, checkpoint: Path, tmp_path: Path
) -> None:
    damage(checkpoint)
    with pytest.raises(CheckpointError, match=named):
        convert_to_hf(str(checkpoint), tmp_path / "new", None)
    assert not (tmp_path / "new").exists()


def test_checkpoint_is_refused_when_its_recipe_is_of_another_version(checkpoint: Path, tmp_path: Path) -> None:
    _edit_state(checkpoint, {"model": {"hidden_sise": 3}})
    with pytest.raises(ConfigError, match="unknown key 'hidden_sise'"):
        convert_to_hf(str(checkpoint), tmp_path / "new", None)
