"""What happens around the steps: evaluation, saving, TensorBoard."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint import store
from moesaic.checkpoint.store import CheckpointStore
from moesaic.errors import ConfigError, TrainingError
from moesaic.telemetry.metrics import MetricsFile, read_metrics
from moesaic.train import hooks
from moesaic.train.run import train
from tests.checkpoint.stored import read_checkpoint
from tests.train.conftest import Recipe
from tests.train.stop_at import signal_after
from tests.train.tiny_run import read_course


def _losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_course(folder)]


def test_losses_stay_when_evaluation_comes_more_often(recipe: Recipe) -> None:
    # The gshard router draws random numbers in training: an evaluation must not take any of them.
    runs = [
        train(recipe({"model.router": "gshard", "train.evaluate_every": every}, out=str(every))).folder.path
        for every in (1, 8)
    ]
    assert _losses(runs[0]) == _losses(runs[1])


def test_rows_have_a_held_out_loss_at_the_interval_and_the_end_when_evaluated(recipe: Recipe) -> None:
    folder = train(recipe({"train.evaluate_every": 3})).folder.path
    assert [row["step"] for row in read_course(folder) if "held_out_loss" in row] == [3, 6, 8]


def test_checkpoints_are_saved_at_the_interval_and_the_end_and_the_last_kept_when_training(recipe: Recipe) -> None:
    changes = {"checkpoint.every": 3, "checkpoint.keep_last": 2, "checkpoint.keep_best": False}
    folder = train(recipe(changes)).folder.path
    assert list(CheckpointStore(folder / "checkpoints", 2, False).steps()) == [6, 8]


def test_best_checkpoint_stays_when_later_ones_are_worse(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, 3.0, 4.0, 4.5, 4.2, 4.1, 4.0, 3.9])
    monkeypatch.setattr(hooks, "evaluate", lambda model, batches, world: next(losses))
    changes = {"train.evaluate_every": 1, "checkpoint.every": 1, "checkpoint.keep_last": 2}
    folder = train(recipe(changes)).folder.path
    assert list(CheckpointStore(folder / "checkpoints", 2, True).steps()) == [2, 7, 8]


def test_metrics_are_written_before_the_checkpoint_when_a_step_is_saved(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kill between the two must leave metrics without a checkpoint, never a checkpoint without metrics.
    config = recipe({"checkpoint.every": 1})
    sync = MetricsFile.sync
    on_disk: list[int] = []

    def sync_and_look(file: MetricsFile) -> None:
        sync(file)
        on_disk.append(read_metrics(file.path)[-1]["step"])

    monkeypatch.setattr(MetricsFile, "sync", sync_and_look)
    told: list[tuple[int, int]] = []
    rename = Path.rename

    def rename_and_look(path: Path, target: Path) -> Path:
        if target.name.startswith("step-"):
            told.append((int(target.name[5:]), on_disk[-1]))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_and_look)
    train(config)
    assert [step for step, _ in told] == list(range(1, 9))
    assert all(synced >= step for step, synced in told), told


def test_tensorboard_finds_every_number_of_the_rows_when_asked_for(recipe: Recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(recipe({"train.tensorboard": True, "train.steps": 3})).folder.path
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    rows = read_metrics(folder / "metrics.jsonl")
    assert {"loss", "learning_rate", "held_out_loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def test_tensorboard_is_refused_with_the_extra_to_install_when_it_is_missing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"train\.tensorboard needs TensorBoard") as raised:
        train(recipe({"train.tensorboard": True}))
    assert "moesaic[track]" in raised.value.hint
    assert not Path(recipe().train.out).exists()


def test_run_stops_and_saves_nothing_when_its_parameters_are_no_longer_finite(recipe: Recipe) -> None:
    with pytest.raises(TrainingError, match=r"step 1: parameter '.*' is no longer finite") as raised:
        train(recipe({"optim.learning_rate": 1e38, "optim.warmup_steps": 0, "checkpoint.every": 1}))
    assert "learning_rate" in raised.value.hint
    folder = Path(recipe().train.out)
    assert not list((folder / "checkpoints").glob("step-*"))
    assert not (folder / "model").exists()


def test_run_stops_when_the_held_out_loss_is_not_finite(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "evaluate", lambda model, batches, world: float("nan"))
    with pytest.raises(TrainingError, match="step 4: the held-out loss is nan"):
        train(recipe())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_each_save_is_told_in_a_file_of_its_own_when_training(asynchronous: bool, recipe: Recipe) -> None:
    folder = train(recipe({"checkpoint.every": 3, "checkpoint.asynchronous": asynchronous})).folder
    rows = read_metrics(folder.saves)
    assert [row["step"] for row in rows] == [3, 6, 8]
    assert all(("copy" in row["seconds"]) == asynchronous for row in rows)
    assert all(row["seconds"]["stall"] > 0 for row in rows)


def test_checkpoints_are_the_same_when_written_beside_training_and_not(recipe: Recipe) -> None:
    runs = [
        train(
            recipe({"checkpoint.every": 2, "checkpoint.keep_last": 9, "checkpoint.asynchronous": each}, out=str(each))
        )
        for each in (True, False)
    ]
    for step in (2, 4, 6, 8):
        first, second = (read_checkpoint(run.folder.checkpoints / f"step-{step:08d}") for run in runs)
        for folder, tensors in first.items():
            assert all(torch.equal(tensor, second[folder][name]) for name, tensor in tensors.items())


def test_second_signal_ends_the_run_when_it_waits_for_a_checkpoint(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def never_write(*_: object) -> None:
        # The second signal comes while the run waits for this.
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        go.wait(30)

    monkeypatch.setattr(store, "write_shares", never_write)
    with signal_after(3), pytest.raises(KeyboardInterrupt):
        train(recipe())
    go.set()
    assert not list((Path(recipe().train.out) / "checkpoints").glob("step-*"))
