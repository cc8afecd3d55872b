"""A whole run leaves what was promised."""

import io
import json
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from moesaic.checkpoint.store import CheckpointStore
from moesaic.telemetry.metrics import read_metrics
from moesaic.telemetry.report import write_report
from moesaic.tokenizer.tokenizer import Tokenizer
from moesaic.train import finish, start
from moesaic.train.run import train
from tests.checkpoint.stored import read_checkpoint
from tests.train.conftest import Recipe
from tests.train.tiny_run import read_course


def test_run_folder_holds_recipe_metrics_report_checkpoint_and_model_when_training_ends(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "write_report", write_report)
    outcome = train(recipe())
    folder = outcome.folder.path
    assert outcome.interrupted is None
    assert tomllib.loads((folder / "config.toml").read_text())["train"]["steps"] == 8
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert {"loss", "tokens_per_s", "learning_rate", "grad_norm", "balance_loss", "z_loss"} <= rows[0].keys()
    assert "<svg" in (folder / "report.html").read_text()
    assert (folder / "model" / "config.json").is_file()
    assert (folder / "tokenizer" / "tokenizer.json").is_file()
    assert list(CheckpointStore(folder / "checkpoints", 1, True).steps()) == [8]


def test_summary_tells_sizes_losses_and_baselines_when_training_ends(recipe: Recipe) -> None:
    outcome = train(recipe())
    summary = json.loads((outcome.folder.path / "summary.json").read_text())
    assert summary == outcome.summary
    assert (summary["steps"], summary["tokens"]) == (8, 8 * 4 * 32)
    assert summary["active_parameters"] == summary["parameters"] - 2 * 2 * 3 * 32 * 24
    assert summary["held_out_loss"] == read_metrics(outcome.folder.metrics)[-1]["held_out_loss"]
    assert 0 < summary["baselines"]["bigram"] < summary["baselines"]["unigram"]


def test_loss_falls_below_its_beginning_when_a_model_learns(recipe: Recipe) -> None:
    rows = read_metrics(train(recipe({"train.steps": 30})).folder.metrics)
    assert rows[-1]["loss"] < rows[0]["loss"] - 1


def test_two_runs_are_equal_to_the_last_digit_when_their_recipes_are(recipe: Recipe) -> None:
    courses = [train(recipe(out=name)).folder.path for name in ("one", "two")]
    first, second = ((folder / "model" / "model.safetensors").read_bytes() for folder in courses)
    assert first == second


def test_other_seed_gives_another_course_when_changed(recipe: Recipe) -> None:
    losses = [
        read_metrics(train(recipe({"train.seed": seed, "train.steps": 1}, out=str(seed))).folder.metrics)[0]["loss"]
        for seed in (1, 2)
    ]
    assert losses[0] != losses[1]


def test_run_has_no_held_out_loss_and_no_baselines_when_nothing_is_held_out(recipe: Recipe) -> None:
    outcome = train(recipe({"data.held_out": 0}))
    assert outcome.summary["held_out_loss"] is None
    assert outcome.summary["baselines"] == {}
    assert all("held_out_loss" not in row for row in read_metrics(outcome.folder.metrics))


def test_progress_tells_that_nothing_is_evaluated_when_the_held_out_part_is_too_short(recipe: Recipe) -> None:
    stream = io.StringIO()
    train(recipe({"data.held_out": 0.0005, "train.steps": 1}), console=Console(file=stream, width=200))
    assert "is not evaluated: its held-out part has" in stream.getvalue()


def test_bfloat16_run_exports_bfloat16_and_keeps_float32_checkpoints_when_asked_for(recipe: Recipe) -> None:
    folder = train(recipe({"train.precision": "bfloat16", "train.steps": 2})).folder.path
    exported = load_file(folder / "model" / "model.safetensors")
    checkpoint = read_checkpoint(folder / "checkpoints" / "step-00000002")
    kept = {**checkpoint["model"], **checkpoint["optimizer"]}
    assert {str(tensor.dtype) for tensor in exported.values()} == {"torch.bfloat16"}
    assert {str(tensor.dtype) for tensor in kept.values()} == {"torch.float32"}


@pytest.mark.parametrize(("native", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_precision_is_what_the_machine_computes_when_the_recipe_does_not_say(
    native: bool, precision: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "computes_bfloat16", lambda: native)
    config = recipe({"train.steps": 1})
    unset = config.model_copy(update={"train": config.train.model_copy(update={"precision": None})})
    folder = train(unset).folder.path
    assert tomllib.loads((folder / "config.toml").read_text())["train"]["precision"] == precision
    assert {str(tensor.dtype) for tensor in load_file(folder / "model" / "model.safetensors").values()} == {
        f"torch.{precision}"
    }


def test_lion_trains_when_the_recipe_names_it(recipe: Recipe) -> None:
    rows = read_metrics(train(recipe({"optim.kind": "lion", "optim.learning_rate": 0.003})).folder.metrics)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_course_stays_when_activations_are_recomputed(recipe: Recipe) -> None:
    # A router that draws random numbers must draw the same ones again in the backward pass.
    changes = {"model.router": "gshard", "model.router_jitter_noise": 0.2, "train.steps": 4}
    kept = train(recipe(changes, out="kept")).folder.path
    redone = train(recipe({**changes, "train.recompute": True}, out="redone")).folder.path
    assert read_course(redone) == read_course(kept)


def test_run_folder_lies_in_the_home_folder_when_it_begins_with_a_tilde(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert train(recipe({"train.out": "~/mine", "train.steps": 1})).folder.path == tmp_path / "mine"


def test_special_tokens_are_those_of_the_tokenizer_when_the_model_is_a_preset(recipe: Recipe) -> None:
    small = {"num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8, "intermediate_size": 16}
    changes = {f"model.{key}": value for key, value in small.items()}
    folder = train(recipe({**changes, "model.preset": "mixtral-8x7b", "train.steps": 1})).folder
    tokenizer = Tokenizer.load(folder.tokenizer)
    exported = json.loads((folder.model / "config.json").read_text())
    assert exported["model_type"] == "mixtral"
    assert (exported["bos_token_id"], exported["eos_token_id"]) == (tokenizer.bos_id, tokenizer.eos_id)
