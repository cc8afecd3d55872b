"""What the sections of a recipe derive, and where they contradict themselves or each other."""

from typing import Any

import pytest

from moesaic.config.load import check_section
from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError
from tests.config.recipe import recipe_tree


def _config(**changes: Any) -> RunConfig:
    return check_section(RunConfig, recipe_tree(**changes), "recipe.toml")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"data": {"sequence_length": 4096}},
            "data.sequence_length 4096 exceeds model.max_position_embeddings 2048",
        ),
        ({"tokenizer": {"vocab_size": 301}}, "tokenizer.vocab_size 301 exceeds model.vocab_size 300"),
        ({"optim": {"warmup_steps": 100}}, "optim.warmup_steps 100 leaves nothing of train.steps 100"),
        ({"optim": {"betas": [0.9, 1.0]}}, "optim: betas [0.9, 1.0] must lie within [0, 1)"),
        ({"optim": {"min_learning_rate": 0.1}}, "optim: min_learning_rate 0.1 exceeds learning_rate 0.001"),
        ({"train": {"micro_batch_size": 3}}, "train: batch_size 8 does not divide into micro_batch_size 3"),
        ({"data": {"source": None}}, "data: give either source or mixture"),
        ({"data": {"mixture": [{"source": "a"}]}}, "data: give either source or mixture"),
    ],
)
def test_recipe_is_refused_when_sections_contradict_each_other(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(**changes)
    assert caught.value.text == f"recipe.toml: {text}"


def test_source_is_a_mixture_of_one_when_it_stands_alone() -> None:
    (part,) = _config(data={"field": "body"}).data.parts
    assert (part.source, part.weight, part.field) == ("text.txt", 1.0, "body")


def test_part_has_the_field_of_the_section_when_it_names_none() -> None:
    mixture = [{"source": "a.jsonl"}, {"source": "b.jsonl", "field": "own"}]
    parts = _config(data={"source": None, "mixture": mixture, "field": "body"}).data.parts
    assert [(part.source, part.field) for part in parts] == [("a.jsonl", "body"), ("b.jsonl", "own")]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data": {"source": None, "mixture": [{"source": ""}]}}, "data.mixture.0.source"),
        ({"data": {"source": None, "mixture": [{"source": "a", "field": ""}]}}, "data.mixture.0.field"),
        ({"data": {"field": ""}}, "data.field"),
        ({"data": {"cache": ""}}, "data.cache"),
        ({"tokenizer": {"path": ""}}, "tokenizer.path"),
    ],
)
def test_text_is_refused_when_it_is_empty(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' is ''") as caught:
        _config(**changes)
    assert caught.value.hint == "string should have at least 1 character"


def test_course_is_derived_when_not_given() -> None:
    config = _config(train={"steps": 200})
    assert (config.warmup_steps, config.train.micro_batch, config.train.evaluation_interval) == (10, 8, 20)
    given = _config(train={"micro_batch_size": 2, "evaluate_every": 7}, optim={"warmup_steps": 3})
    assert (given.warmup_steps, given.train.micro_batch, given.train.evaluation_interval) == (3, 2, 7)


def test_warmup_is_none_when_a_run_has_one_step() -> None:
    assert _config(train={"steps": 1}).warmup_steps == 0


def test_clipping_is_off_when_the_norm_is_zero() -> None:
    assert _config(optim={"clip_norm": 0}).optim.clip_norm is None


def test_changes_are_named_with_both_values_when_recipes_differ() -> None:
    mine = _config(train={"steps": 7}, model={"rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    changes = mine.changes_from(_config())
    assert changes["train.steps"] == (7, 100)
    assert changes["model.rope_scaling"][0]["factor"] == 2.0
    assert changes["model.rope_scaling"][1] is None
    assert "train.batch_size" not in changes
    assert changes.keys() == _config().changes_from(mine).keys()


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"steps": True}},
        {"train": {"steps": "5"}},
        {"train": {"threads": 100_000}},
        {"train": {"seed": 2**63}},
        {"optim": {"learning_rate": "fast"}},
        {"model": {"tie_word_embeddings": 1}},
    ],
)
def test_value_is_refused_when_it_only_resembles_what_is_accepted(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"' is "):
        _config(**changes)


def test_settings_cannot_be_changed_when_loaded() -> None:
    config = _config()
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 3  # type: ignore[misc]
