"""A run that starts from the weights of another one."""

from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.load import load_model
from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError
from moesaic.train.evaluate import evaluate
from moesaic.train.run import train
from tests.train.conftest import Recipe
from tests.train.stop_at import signal_after
from tests.train.tiny_run import read_course


@pytest.fixture
def start(recipe: Recipe) -> Path:
    """The model folder of a run that has learnt something."""
    return train(recipe({"train.steps": 20}, out="start")).folder.model


def _from(start: Path) -> dict[str, str]:
    return {"train.init_from": str(start), "tokenizer.path": str(start)}


def _loss_on_first_batch(start: Path, config: RunConfig) -> float:
    from moesaic.data.loader import Loader
    from moesaic.data.prepare import prepare
    from moesaic.tokenizer.tokenizer import Tokenizer

    loader = Loader(prepare(config.data, Tokenizer.load(start)), config.data, config.train.batch_size)
    return evaluate(load_model(start), [loader.next_batch()])


def test_run_begins_with_the_loss_of_the_model_when_it_starts_from_one(recipe: Recipe, start: Path) -> None:
    config = recipe(_from(start))
    expected = _loss_on_first_batch(start, config)
    course = read_course(train(config).folder.path)
    assert course[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert course[0]["loss"] < read_course(start.parent)[0]["loss"] - 0.5


def test_model_section_holds_when_it_changes_what_has_no_weights(recipe: Recipe, start: Path) -> None:
    changes = {**_from(start), "model.capacity_factor": 0.5, "model.pregated": True}
    folder = train(recipe(changes)).folder.path
    assert all(row["dropped_share"] > 0 for row in read_course(folder))
    config = load_model(folder).config
    assert (config.capacity_factor, config.pregated) == (0.5, True)


def test_run_is_refused_when_the_model_section_does_not_fit_the_weights(recipe: Recipe, start: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit the model section: size mismatch"):
        train(recipe({**_from(start), "model.moe_intermediate_size": 40}))


def test_resumed_run_goes_on_from_its_checkpoint_when_it_had_started_from_a_model(recipe: Recipe, start: Path) -> None:
    whole = train(recipe(_from(start), out="whole")).folder.path
    with signal_after(3):
        train(recipe(_from(start), out="broken"))
    resumed = train(recipe(_from(start), out="broken")).folder.path
    assert read_course(resumed) == read_course(whole)


def test_every_weight_is_trained_when_the_start_was_loaded_frozen(recipe: Recipe, start: Path) -> None:
    before, after = load_model(start), load_model(train(recipe({**_from(start), "train.steps": 1})).folder.path)
    stored = after.state_dict()
    assert not any(torch.equal(tensor, stored[name]) for name, tensor in before.state_dict().items())
