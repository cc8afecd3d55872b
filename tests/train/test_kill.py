"""kill -9 at random moments: the folder always resumes, and the course is that of a run without a stop."""

import random
import signal
import time
from pathlib import Path

import pytest

from moesaic.train.run import train
from tests.train.conftest import Recipe
from tests.train.sitting import start_sitting, wait_for
from tests.train.tiny_run import read_course

NUM_KILLS = 25  # twenty of them within a save
CHANGES = {"train.steps": 140, "train.evaluate_every": 10, "checkpoint.every": 1}


def _num_rows(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def _is_saving(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".writing-*"))


def _kill_within_a_save(text: Path, folder: Path, moments: random.Random) -> bool:
    """Let a run take a few steps, kill it soon after a save has begun, and tell whether the save was cut."""
    process = start_sitting(text, folder, CHANGES)
    goal = _num_rows(folder) + moments.randint(1, 3)
    wait_for(lambda: _num_rows(folder) >= goal, process)
    wait_for(lambda: _is_saving(folder), process)
    time.sleep(moments.uniform(0, 0.02))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return _is_saving(folder)


def _kill_at_any_moment(text: Path, folder: Path, moments: random.Random) -> None:
    """Kill a run while it begins, resumes or takes its first steps."""
    process = start_sitting(text, folder, CHANGES)
    time.sleep(moments.uniform(0, 0.3))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
def test_course_is_that_of_an_unbroken_run_when_killed_twenty_times(text: Path, recipe: Recipe, tmp_path: Path) -> None:
    moments, folder = random.Random(0), tmp_path / "killed"
    num_cut = 0
    for number in range(NUM_KILLS):
        if number % 5 == 4:
            _kill_at_any_moment(text, folder, moments)
        else:
            num_cut += _kill_within_a_save(text, folder, moments)
    assert num_cut > 0, "no save was cut: the moments no longer fit the time that a save takes"
    assert _num_rows(folder) < CHANGES["train.steps"], "the run must outlast the kills"

    resumed = train(recipe(CHANGES, out="killed")).folder.path
    whole = train(recipe(CHANGES, out="whole")).folder.path
    assert read_course(resumed) == read_course(whole)
    assert not any(path.name.startswith(".") for path in (resumed / "checkpoints").iterdir())
