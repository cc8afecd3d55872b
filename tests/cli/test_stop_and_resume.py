"""The promise as a user meets it: stop `moesaic train` by a signal or a power cut, run it again, lose nothing."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from moesaic.train.run import train
from tests.cli.command import PYTHON, Answer, run_apart
from tests.cli.conftest import RecipeFile
from tests.train.tiny_run import read_course, tiny_run

NUM_STEPS = 160
CHANGES = {"train.steps": NUM_STEPS, "train.evaluate_every": 40, "checkpoint.every": 16}
CHANGES |= {"model.router_jitter_noise": 0.1}
_DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The course of a run that is never stopped."""
    return read_course(train(tiny_run(text, tmp_path_factory.mktemp("whole") / "run", CHANGES)).folder.path)


def _train_until_half_way(arguments: tuple[Any, ...], folder: Path, number: signal.Signals) -> Answer:
    """Start training, and send a signal when half of the steps are told."""
    with subprocess.Popen([*PYTHON, *map(str, arguments)], stderr=subprocess.PIPE, text=True) as process:
        metrics, deadline = folder / "metrics.jsonl", time.monotonic() + _DEADLINE_S
        while not metrics.is_file() or metrics.read_bytes().count(b"\n") < NUM_STEPS // 2:
            assert process.poll() is None, f"the run ended with {process.returncode}"
            assert time.monotonic() < deadline, f"the run took more than {_DEADLINE_S} s"
            time.sleep(0.002)
        process.send_signal(number)
        _, told = process.communicate(timeout=_DEADLINE_S)
        return Answer(process.returncode, "", told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 130), (signal.SIGKILL, -9)],
    ids=["SIGTERM", "SIGKILL"],
)
def test_course_is_that_of_an_unbroken_run_when_resumed_after(
    number: signal.Signals, code: int, recipe_file: RecipeFile, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe = recipe_file({**CHANGES, "train.steps": 9999})
    command = ("train", recipe, "--set", f"train.steps={NUM_STEPS}")
    stopped = _train_until_half_way(command, tmp_path / "run", number)
    assert stopped.code == code
    assert ("which is saved; --resume auto goes on" in stopped.err) == (code == 130)
    assert len(read_course(tmp_path / "run")) < NUM_STEPS

    resumed = run_apart(*command, "--resume", "auto")
    assert resumed.code == 0, resumed.err
    assert read_course(tmp_path / "run") == whole
