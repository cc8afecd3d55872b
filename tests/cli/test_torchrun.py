"""Training with several processes as a user starts them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from moesaic.telemetry.metrics import read_metrics
from moesaic.train.run import train
from tests.cli.command import run_apart
from tests.cli.conftest import RecipeFile
from tests.train.tiny_run import Changes, tiny_run

pytestmark = pytest.mark.slow
CHANGES: Changes = {"train.steps": 9, "train.batch_size": 6, "checkpoint.every": 3, "checkpoint.keep_last": 3}
_DEADLINE_S = 150


def _torchrun(num_ranks: int, *arguments: Any, restarts: int = 0) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", str(restarts)]
    return [*launcher, "--nproc-per-node", str(num_ranks), "-m", "moesaic", *map(str, arguments)]


def _run(num_ranks: int, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = _torchrun(num_ranks, *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_DEADLINE_S)


def _course(folder: Path) -> list[dict[str, Any]]:
    """Return what does not depend on the clock, nor on how many processes there are to talk to."""
    others = ("seconds", "tokens_per_s")
    return [
        {key: row[key] for key in row if key not in others and not key.endswith(("_messages", "_bytes"))}
        for row in read_metrics(folder)
    ]


def _check_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    # In float32 a sum in another order may send a token elsewhere, which shows in counts.
    for row, wanted in zip(found, expected, strict=True):
        for key in ("step", "tokens", "learning_rate"):
            assert row[key] == wanted[key]
        for key in wanted.keys() & {"loss", "grad_norm", "balance_loss", "z_loss", "held_out_loss"}:
            assert row[key] == pytest.approx(wanted[key], rel=2e-3), key


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The course of one process."""
    folder = train(tiny_run(text, tmp_path_factory.mktemp("whole") / "run", CHANGES)).folder
    return _course(folder.metrics)


def test_course_is_that_of_one_process_when_ranks_come_and_go(
    recipe_file: RecipeFile, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe, out = recipe_file(CHANGES), tmp_path / "run"
    shares = ("--set", "parallel.data_shard=2", "--schedule", "2")
    for num_ranks, checkpoint, options in [(2, None, shares), (3, 3, ()), (2, 6, ())]:
        resume = () if checkpoint is None else ("--resume", out / f"checkpoints/step-{checkpoint:08d}")
        done = _run(num_ranks, "train", recipe, *options, *resume)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        _check_equal(_course(out / "metrics.jsonl"), whole)
    alone = run_apart("train", recipe, "--resume", out / "checkpoints/step-00000003")
    assert alone.code == 0, alone.err
    _check_equal(_course(out / "metrics.jsonl"), whole)
    answer = run_apart("generate", out, "abc", "--max-tokens", "3")
    assert answer.code == 0, answer.err


def test_course_goes_on_when_four_ranks_become_two_and_then_three(
    recipe_file: RecipeFile, whole: list[dict[str, Any]], tmp_path: Path
) -> None:
    recipe, out = recipe_file(CHANGES), tmp_path / "run"
    # Moments lie otherwise each time: cut in two and by experts, whole, and by three, which divides nothing.
    for num_ranks, checkpoint, options in [
        (4, None, ("parallel.data_shard=2", "parallel.expert=4")),
        (2, 3, ("parallel.expert=1",)),
        (3, 6, ("parallel.data_shard=3",)),
    ]:
        resume = () if checkpoint is None else ("--resume", out / f"checkpoints/step-{checkpoint:08d}")
        done = _run(num_ranks, "train", recipe, *(each for option in options for each in ("--set", option)), *resume)
        assert done.returncode == 0, done.stderr
        _check_equal(_course(out / "metrics.jsonl"), whole)
    last = json.loads((out / "checkpoints/step-00000009/state.json").read_text())
    assert {f"model/rank-{rank:05d}.safetensors" for rank in range(3)} < last["files"].keys()
    saves = [(row["step"], row["ranks"]) for row in read_metrics(out / "saves.jsonl")]
    assert saves == [(3, 4), (6, 4), (9, 4), (6, 2), (9, 2), (9, 3)]


def test_mistake_is_told_once_when_every_rank_makes_it(recipe_file: RecipeFile) -> None:
    done = _run(2, "train", recipe_file(CHANGES), "--set", "parallel.expert=3")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "error: rank 0: parallel.expert is 3, which does not divide the 2 ranks" in done.stderr


def _signal_second_rank(process: subprocess.Popen[str], metrics: Path, number: signal.Signals) -> list[psutil.Process]:
    """Send a signal to rank 1 once a few steps are told; return both ranks."""
    deadline = time.monotonic() + _DEADLINE_S
    while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run does not begin"
        time.sleep(0.02)
    ranks = psutil.Process(process.pid).children()
    os.kill(next(rank for rank in ranks if rank.environ()["RANK"] == "1").pid, number)
    return ranks


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_others_end_and_the_rank_is_named_when_it(
    number: signal.Signals, recipe_file: RecipeFile, tmp_path: Path
) -> None:
    # On a busy machine a rank may well be some seconds behind another one.
    recipe = recipe_file({**CHANGES, "train.steps": 100000, "parallel.timeout_s": 15})
    # Most of the time it is a thread that waits for the other rank.
    with subprocess.Popen(_torchrun(2, "train", recipe, "--schedule", 2), stderr=subprocess.PIPE, text=True) as process:
        ranks = _signal_second_rank(process, tmp_path / "run/metrics.jsonl", number)
        _, told = process.communicate(timeout=_DEADLINE_S)
    assert process.returncode != 0
    assert not any(rank.is_running() for rank in ranks), "no rank is left"
    if number == signal.SIGSTOP:
        assert "error: rank 0: rank 1 ended or did not answer in time" in told
        assert told.count("error: ") == 1
    else:
        assert "rank      : 1" in told, "torchrun tells which one died first"


def test_run_goes_on_from_its_checkpoint_when_torchrun_restarts_it(recipe_file: RecipeFile, tmp_path: Path) -> None:
    recipe, metrics = recipe_file({**CHANGES, "train.steps": 60}), tmp_path / "run/metrics.jsonl"
    with subprocess.Popen(_torchrun(2, "train", recipe, restarts=1), stderr=subprocess.PIPE, text=True) as process:
        _signal_second_rank(process, metrics, signal.SIGKILL)
        _, told = process.communicate(timeout=_DEADLINE_S)
    assert process.returncode == 0, told
    steps = [int(found) for found in re.findall(r"; step (\d+) of 60", told)]
    assert len(steps) == 2, "it began twice"
    assert steps[0] == 0 < steps[1]
    assert [row["step"] for row in _course(metrics)] == list(range(1, 61))
