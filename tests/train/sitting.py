"""Runs in processes of their own, which a test may kill; torch is loaded once for all of them."""

import io
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rich.console import Console

from tests.train.tiny_run import Changes, tiny_run

_DEADLINE_S = 60.0


def start_sitting(text: Path, out: Path, changes: Changes) -> ForkServerProcess:
    """Begin or resume a run in a new process."""
    context = multiprocessing.get_context("forkserver")
    # An optimizer imports torch._dynamo when it is built, which takes longer than the run.
    context.set_forkserver_preload(["moesaic.train.run", "torch._dynamo"])
    process = context.Process(target=_sit, args=(text, out, dict(changes)))
    process.start()
    return process


def wait_for(condition: Callable[[], bool], process: ForkServerProcess) -> None:
    """Poll until a condition holds.

    Raises:
        AssertionError: the process has ended, or a minute has passed.
    """
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        assert process.exitcode is None, f"the run ended with {process.exitcode}"
        assert time.monotonic() < deadline, f"the run took more than {_DEADLINE_S} s"
        time.sleep(0.0005)


def _sit(text: Path, out: Path, changes: Changes) -> None:
    from moesaic.train import finish, run

    finish.write_report = lambda name, rows, config, summary, path: path.write_text(name)
    run.train(tiny_run(text, out, changes), console=Console(file=io.StringIO()))
