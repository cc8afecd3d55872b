"""Models of random weights: whole folders that load as a published one does, and differ where they should."""

from pathlib import Path

import pytest
import torch

from moesaic import load_model
from moesaic.bench.random_model import save_random_model
from moesaic.checkpoint.folder import list_shards
from moesaic.config.model import ModelConfig
from moesaic.errors import UnsupportedError
from moesaic.models.table import expand_model
from tests.models.foreign import foreign_logits, load_foreign

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
}
CONFIG = ModelConfig(**expand_model({"preset": "olmoe-1b-7b", **SIZES}))


def test_logits_are_those_of_transformers_when_loaded(tmp_path: Path) -> None:
    save_random_model(CONFIG, tmp_path / "model")
    ids_BS = torch.randint(CONFIG.vocab_size, (2, 9))
    ours = load_model(tmp_path / "model", dtype="float32")(ids_BS)
    torch.testing.assert_close(ours, foreign_logits(load_foreign(tmp_path / "model", torch.float32), ids_BS))


def test_weights_are_equal_when_seeds_are_and_no_two_experts_are(tmp_path: Path) -> None:
    states = []
    for number, seed in enumerate((0, 0, 1)):
        save_random_model(CONFIG, tmp_path / str(number), seed)
        states.append(load_model(tmp_path / str(number)).state_dict())
    drawn = [name for name in states[0] if "norm" not in name]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not any(torch.equal(states[0][name], states[2][name]) for name in drawn)
    experts = torch.cat([tensor for name, tensor in states[0].items() if name.endswith("gate_up")])
    assert len(experts.unique(dim=0)) == CONFIG.num_hidden_layers * CONFIG.num_experts
    assert float(experts.float().std()) == pytest.approx(CONFIG.initializer_range, rel=0.05)


def test_each_layer_is_a_file_when_written(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    save_random_model(CONFIG, tmp_path / "model", report=lambda done, total: told.append((done, total)))
    assert list_shards(tmp_path / "model") == [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_nothing_stands_in_its_place_when_writing_ends_early(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_random_model(CONFIG, tmp_path / "model", report=stop)
    assert not list(tmp_path.iterdir())


def test_model_is_refused_when_it_is_of_no_family(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="model_type 'moesaic' is not supported"):
        save_random_model(CONFIG.model_copy(update={"model_type": "moesaic"}), tmp_path / "model")
