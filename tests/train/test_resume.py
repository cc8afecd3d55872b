"""A run that was stopped goes on as if it had not been: every metric is equal to the last digit."""

import signal
from pathlib import Path
from typing import Any

import pytest

from moesaic.checkpoint.store import CheckpointStore
from moesaic.errors import DataError
from moesaic.telemetry.metrics import read_metrics
from moesaic.train.run import train
from tests.checkpoint.stored import read_checkpoint
from tests.train.conftest import Recipe
from tests.train.stop_at import signal_after
from tests.train.tiny_run import read_course

# Each keeps something else between steps: a generator, a bias, one moment, a place in several texts.
KINDS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "jitter": {"model.router_jitter_noise": 0.3},
    "gshard": {"model.router": "gshard"},
    "sigmoid": {"model.router": "sigmoid", "model.bias_update_speed": 0.05},
    "lion": {"optim.kind": "lion"},
    "bfloat16": {"train.precision": "bfloat16", "train.micro_batch_size": 2},
    "documents": {"data.respect_documents": True, "train.evaluate_every": 3},
}


def _checkpoints(folder: Path) -> list[int]:
    return list(CheckpointStore(folder / "checkpoints", 1, True).steps())


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_course_is_that_of_an_unbroken_run_when_resumed_after_a_signal(changes: dict[str, Any], recipe: Recipe) -> None:
    whole = train(recipe(changes, out="whole")).folder.path
    with signal_after(4):
        stopped = train(recipe(changes, out="broken"))
    assert stopped.interrupted == "SIGTERM"
    assert [row["step"] for row in read_course(stopped.folder.path)] == [1, 2, 3, 4]
    resumed = train(recipe(changes, out="broken")).folder.path
    assert read_course(resumed) == read_course(whole)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, resumed)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_saves_and_tells_the_signal_when_it_is_stopped(number: signal.Signals, recipe: Recipe) -> None:
    with signal_after(3, number):
        outcome = train(recipe())
    assert outcome.interrupted == number.name
    assert _checkpoints(outcome.folder.path) == [3]
    assert not outcome.folder.model.exists()


def test_run_ends_as_usual_when_the_signal_comes_in_the_last_step(recipe: Recipe) -> None:
    with signal_after(8):
        outcome = train(recipe())
    assert outcome.interrupted is None
    assert outcome.folder.model.is_dir()


def test_metrics_after_the_checkpoint_are_written_anew_when_the_stop_came_between_two_saves(recipe: Recipe) -> None:
    whole = train(recipe(out="whole")).folder.path
    changes = {"checkpoint.every": 3}
    with signal_after(5):
        folder = train(recipe(changes)).folder.path
    checkpoint = folder / "checkpoints" / "step-00000003"
    resumed = train(recipe(changes), resume=str(checkpoint)).folder.path
    assert read_course(resumed) == read_course(whole)


def test_later_checkpoints_go_when_a_run_resumes_from_an_earlier_one(recipe: Recipe) -> None:
    changes = {"checkpoint.every": 2, "checkpoint.keep_last": 9}
    folder = train(recipe(changes)).folder.path
    assert _checkpoints(folder) == [2, 4, 6, 8]
    with signal_after(3):
        train(recipe(changes), resume=str(folder / "checkpoints" / "step-00000002"))
    assert _checkpoints(folder) == [2, 3]
    train(recipe(changes))
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == list(range(1, 9))


def test_run_goes_on_in_a_new_folder_when_given_a_checkpoint_of_another_run(recipe: Recipe) -> None:
    first = train(recipe({"checkpoint.every": 4}, out="first")).folder.path
    second = train(recipe(out="second"), resume=str(first / "checkpoints" / "step-00000004")).folder.path
    assert read_course(second) == read_course(first)[4:]
    assert (second / "tokenizer" / "tokenizer.json").is_file()


def test_finished_run_writes_its_results_again_when_resumed(recipe: Recipe) -> None:
    folder = train(recipe()).folder.path
    course = read_course(folder)
    (folder / "report.html").unlink()
    outcome = train(recipe())
    assert read_course(folder) == course
    assert (folder / "report.html").is_file()
    assert outcome.summary["held_out_loss"] == course[-1]["held_out_loss"]


def test_finished_run_goes_on_when_steps_are_raised(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(recipe({"train.steps": 4})).folder.path
    train(recipe({"train.steps": 6}))
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert "train.steps is 6, was 4 before" in capsys.readouterr().err


def test_balancing_bias_moves_and_is_brought_back_when_a_sigmoid_run_resumes(recipe: Recipe) -> None:
    changes = {"model.router": "sigmoid", "model.bias_update_speed": 0.25, "checkpoint.every": 1}
    with signal_after(3):
        folder = train(recipe(changes)).folder.path
    name = "decoder.layers.0.moe.router.selection_bias"
    saved = read_checkpoint(folder / "checkpoints" / "step-00000003")["model"][name]
    assert set(saved.abs().tolist()) <= {0.0, 0.25, 0.5, 0.75}
    assert saved.any()
    with signal_after(4):
        train(recipe(changes))
    moved = read_checkpoint(folder / "checkpoints" / "step-00000004")["model"][name] - saved
    assert set(moved.abs().tolist()) <= {0.0, 0.25}


def test_run_refuses_to_resume_when_the_text_has_changed(recipe: Recipe, tmp_path: Path) -> None:
    with signal_after(2):
        train(recipe())
    (tmp_path / "other.txt").write_text("other words entirely " * 900)
    with pytest.raises(DataError, match="the data or the tokenizer changed"):
        train(recipe({"data.source": str(tmp_path / "other.txt")}))


def test_fresh_run_starts_when_resume_is_never_and_nothing_was_saved(recipe: Recipe) -> None:
    assert train(recipe({"train.steps": 1}), resume="never").interrupted is None
