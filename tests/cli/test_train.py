"""`moesaic train`, from a recipe file to a model folder."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Run, check_two_lines
from tests.cli.conftest import RecipeFile
from tests.train.tiny_run import read_course


def test_train_tells_where_model_and_report_are_and_prints_no_result_when_it_ends(
    cli: Run, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    answer = cli("train", recipe_file())
    assert (answer.code, answer.out) == (0, "")
    assert f"model   {tmp_path / 'run' / 'model'} (transformers and moesaic load it)" in answer.err
    assert f"report  {tmp_path / 'run' / 'report.html'}" in answer.err
    assert "held-out loss" in answer.err


def test_train_says_that_only_moesaic_loads_the_model_when_no_family_fits(cli: Run, recipe_file: RecipeFile) -> None:
    answer = cli("train", recipe_file({"model.router": "sigmoid"}), "--set", "train.steps=1")
    assert "(moesaic loads it)" in answer.err


def test_train_takes_later_overrides_when_a_key_is_set_twice(cli: Run, recipe_file: RecipeFile, tmp_path: Path) -> None:
    cli("train", recipe_file(), "--set", "train.steps=5", "--set", "train.steps=2", "--set", "data.held_out=0")
    assert [row["step"] for row in read_course(tmp_path / "run")] == [1, 2]


def test_train_goes_on_or_refuses_when_resume_is_auto_or_never(
    cli: Run, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    recipe = recipe_file()
    assert cli("train", recipe, "--set", "train.steps=2").code == 0
    check_two_lines(cli("train", recipe, "--resume", "never"), "--resume never, but")
    assert cli("train", recipe, "--set", "train.steps=3", "--resume", "auto").code == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert cli("train", recipe, "--set", "train.steps=4", "--resume", checkpoint).code == 0
    assert [row["step"] for row in read_course(tmp_path / "run")] == [1, 2, 3, 4]


@pytest.mark.parametrize("place", [".", "model", "checkpoints/step-00000008"])
def test_train_takes_architecture_and_tokenizer_of_a_model_when_it_starts_from_one(
    place: str, cli: Run, recipe_file: RecipeFile, finished: Path, tmp_path: Path
) -> None:
    path = recipe_file()
    text = path.read_text()
    start, end = text.index("[model]"), text.index("[data]")
    path.write_text(text[:start] + text[end:])
    assert cli("train", path, "--set", f"train.init_from={finished / place}", "--set", "train.steps=2").code == 0
    assert read_course(tmp_path / "run")[0]["loss"] < read_course(finished)[0]["loss"] - 0.3
    files = [folder / "model" / "tokenizer.json" for folder in (finished, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_train_is_refused_when_preset_and_start_both_give_the_model(
    cli: Run, recipe_file: RecipeFile, finished: Path
) -> None:
    answer = cli("train", recipe_file({"model.preset": "tiny"}), "--set", f"train.init_from={finished}")
    check_two_lines(answer, "model.preset and train.init_from both give the model")


@pytest.mark.parametrize("name", ["a [red] name", "[/closed]"])
def test_run_folder_is_named_as_it_is_written_when_it_looks_like_markup(
    name: str, cli: Run, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    answer = cli("train", recipe_file(), "--set", f'train.out="{tmp_path / name}"', "--set", "train.steps=1")
    assert answer.code == 0
    assert str(tmp_path / name / "model") in answer.err


# Overrides that make a good recipe a bad one, and what the error names.
BAD: dict[str, tuple[list[str], str]] = {
    "unknown_key": (["model.hidden_sise=3"], "unknown key 'model.hidden_sise'"),
    "unknown_section": (["modle.hidden_size=3"], "unknown key 'modle'"),
    "wrong_type": (["train.steps=many"], "'train.steps' is 'many'"),
    "negative": (["train.steps=-1"], "'train.steps' is -1"),
    "no_value": (["train.steps"], "cannot read override 'train.steps'"),
    "no_key": (["=3"], "cannot read override '=3'"),
    "value_as_section": (["train.steps.more=1"], "'steps' is a value"),
    "section_as_value": (["model=3"], "'model' is 3"),
    "model_as_value": (["model=3", "train.init_from=x/y/z"], "'model' is 3"),
    "tokenizer_as_value": (["tokenizer=3", "train.init_from=x/y/z"], "'tokenizer' is 3"),
    "unknown_preset": (["model.preset=tinny"], "unknown model.preset 'tinny'"),
    "contradiction": (["model.num_experts_per_tok=9"], "num_experts_per_tok 9 is not within 1..4"),
    "long_sequences": (["data.sequence_length=128"], "data.sequence_length 128 exceeds"),
    "micro_batches": (["train.micro_batch_size=3"], "batch_size 4 does not divide"),
    "no_text": (["data.source=/no/such/text"], "no file or folder at '/no/such/text'"),
    "little_text": (["data.source={tmp}/little.txt"], "training tokens"),
    "no_tokenizer": (["tokenizer.path={tmp}/none"], "no tokenizer at"),
    "odd_tokenizer": (["tokenizer.path={tmp}/little.txt"], "cannot read tokenizer"),
    "no_start": (["train.init_from={tmp}/none"], "no model folder at"),
    "empty_start": (["train.init_from={tmp}/empty"], "config.json' is missing"),
    "out_is_a_file": (["train.out={tmp}/little.txt"], "exists and is no run folder"),
    "out_is_a_project": (["train.out={tmp}"], "exists and is no run folder"),
    "out_in_a_file": (["train.out={tmp}/little.txt/run"], "cannot make run folder"),
    "out_too_long": (["train.out={tmp}/" + "x" * 300], "File name too long"),
    "cache_is_a_file": (["data.cache={tmp}/little.txt"], "cannot write tokenised text"),
}


@pytest.mark.parametrize(("overrides", "named"), BAD.values(), ids=BAD)
def test_train_is_refused_in_two_lines_and_leaves_no_trace_when_a_recipe_has(
    overrides: list[str], named: str, cli: Run, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    recipe = recipe_file()
    (tmp_path / "little.txt").write_text("a few words")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    given = [part for each in overrides for part in ("--set", each.replace("{tmp}", str(tmp_path)))]
    check_two_lines(cli("train", recipe, *given), named)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "named"), [(None, "cannot read recipe"), (b"[model", "is no valid TOML"), (b"\xff", "cannot read")]
)
def test_train_is_refused_when_the_recipe_is_a_folder_or_no_toml(
    content: Any, named: str, cli: Run, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.mkdir() if content is None else path.write_bytes(content)
    check_two_lines(cli("train", path), named)


def test_train_tells_the_step_and_the_text_when_the_loss_is_not_finite(
    cli: Run, recipe_file: RecipeFile, text: Path
) -> None:
    settings = ["optim.learning_rate=1e36", "optim.clip_norm=0", "optim.warmup_steps=0", "optim.weight_decay=0"]
    answer = cli("train", recipe_file(), *[part for each in settings for part in ("--set", each)])
    check_two_lines(answer, "step 2: the loss is nan")
    assert f"samples 4..7 of {text}" in answer.err
