"""The steps of a run, and what is done around them."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console

from moesaic.checkpoint.store import CheckpointStore
from moesaic.comm.world import World
from moesaic.config.run import RunConfig
from moesaic.errors import CheckpointError
from moesaic.telemetry.metrics import MetricsFile
from moesaic.train.hooks import EvaluateHook, Hook, MetricsHook, SaveHook, TensorBoardHook
from moesaic.train.interrupt import Interrupt, catch_signals
from moesaic.train.progress import ProgressHook
from moesaic.train.row import metrics_row
from moesaic.train.run_folder import RunFolder
from moesaic.train.state import TrainState
from moesaic.train.step import train_step

# Beyond every signal: a checkpoint could not be written.
_FAILED = 1000


def run_steps(
    state: TrainState, config: RunConfig, folder: RunFolder, store: CheckpointStore, console: Console
) -> str | None:
    """Train until the last step or a signal; return the signal."""
    num_steps = config.train.steps
    metrics = MetricsFile(folder.metrics) if state.world.is_first else None
    saving = SaveHook(config, store, state, metrics, folder.saves)
    with catch_signals() as interrupt, _hooks(state, config, folder, metrics, saving, console) as hooks:
        try:
            while state.step < num_steps and (received := _agree(interrupt, saving, state.world)) is None:
                began = time.monotonic()
                batch = state.loader.next_batch()
                result = train_step(
                    state.model, state.optimizer, batch, state.step + 1, config, state.world, state.gradients
                )
                step_seconds = time.monotonic() - began
                state.step += 1
                state.tokens += result.num_tokens
                state.seconds += step_seconds
                row = metrics_row(state, result, step_seconds, num_steps)
                for hook in hooks:
                    hook.after_step(state, row)
            if state.step < num_steps:
                saving.save(state)
                saving.wait()
                return received
        except KeyboardInterrupt:
            saving.abandon()
            raise
    return None


def _agree(interrupt: Interrupt, saving: SaveHook, world: World) -> str | None:
    """Return the signal that some process received, so that all stop after the same step; likewise raise."""
    number = 0 if interrupt.received is None else signal.Signals[interrupt.received].value
    number = world.largest(_FAILED if saving.has_failed else number)
    if number == _FAILED:
        saving.wait()
        raise CheckpointError("another process could not save", "see what it tells")
    return signal.Signals(number).name if number else None


@contextmanager
def _hooks(
    state: TrainState,
    config: RunConfig,
    folder: RunFolder,
    metrics: MetricsFile | None,
    saving: SaveHook,
    console: Console,
) -> Iterator[list[Hook]]:
    """Give the hooks in their order: a row is complete before it is written, and written before it is saved.

    The first process writes; the others only take part where all must.
    """
    with ExitStack() as stack:
        hooks: list[Hook] = []

        def add(hook: Hook) -> None:
            hooks.append(hook)
            stack.callback(hook.close)

        add(EvaluateHook(config))
        if metrics is not None:
            add(MetricsHook(metrics))
        if metrics is not None and config.train.tensorboard:
            add(TensorBoardHook(folder.path / "tensorboard", state.step + 1))
        add(saving)
        if metrics is not None:
            add(ProgressHook(console, config.train.steps, state.step))
        yield hooks
