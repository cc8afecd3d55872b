"""What happens around the steps of a run, besides training: a table of hooks, called in order."""

import math
from pathlib import Path
from typing import Any, Protocol

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.saver import Saver
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError, TrainingError
from moesaic.telemetry.metrics import MetricsFile
from moesaic.train.evaluate import evaluate, held_out_batches
from moesaic.train.state import TrainState, check_finite

Row = dict[str, Any]


class Hook(Protocol):
    """Something done after each step; it may add to the row, and later hooks see what it added."""

    def after_step(self, state: TrainState, row: Row) -> None:
        """Act on a finished step."""
        ...

    def close(self) -> None:
        """Release what the hook holds; called once, also after a failure."""
        ...


class EvaluateHook:
    """Measure the held-out loss every so many steps and after the last one."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def after_step(self, state: TrainState, row: Row) -> None:
        """Evaluate where it is due and the data has a held-out part.

        Raises:
            TrainingError: the loss is not finite.
        """
        train = self.config.train
        if state.step % train.evaluation_interval and state.step != train.steps:
            return
        batches = held_out_batches(state.loader, train)
        if batches:
            loss = evaluate(state.model, batches, state.world)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"step {state.step}: the held-out loss is {loss}",
                    "lower optim.learning_rate; the last checkpoint is from before this step",
                )
            state.held_out_loss = row["held_out_loss"] = loss

    def close(self) -> None:
        """Nothing is held."""


class MetricsHook:
    """Append the row to metrics.jsonl."""

    def __init__(self, file: MetricsFile) -> None:
        self.file = file

    def after_step(self, state: TrainState, row: Row) -> None:
        """Write the row."""
        self.file.append(row)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class SaveHook:
    """Save a checkpoint every so many steps and after the last one, beside the steps that follow.

    Args:
        config: the recipe.
        store: where checkpoints go.
        state: what is saved.
        metrics: where this process writes them; None: another one does.
        saves: the file that tells of each save.
    """

    def __init__(
        self, config: RunConfig, store: CheckpointStore, state: TrainState, metrics: MetricsFile | None, saves: Path
    ) -> None:
        self.config = config
        self._saves = saves
        self._saver = Saver(
            store,
            Agreement.apart(state.world, config.parallel.timeout_s),
            config.checkpoint.asynchronous,
            check=lambda shares, values: check_finite(self._step, shares, values),
            # A checkpoint has its rows behind it.
            before=None if metrics is None else metrics.sync,
            report=self._report,
        )
        self._step = state.step
        # What is saved is moved here, and nowhere else.
        self._moving = state.optimizer.register_step_pre_hook(lambda *_: self._saver.wait_copied())

    @property
    def has_failed(self) -> bool:
        """Tell whether a checkpoint could not be written; `wait` tells why."""
        return self._saver.has_failed

    def after_step(self, state: TrainState, row: Row) -> None:
        """Save where it is due."""
        if state.step % self.config.checkpoint.every == 0 or state.step == self.config.train.steps:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Begin to save; all processes must call.

        Raises:
            TrainingError, CheckpointError: as `wait`, of the checkpoint before.
        """
        self._saver.begin(lambda: self._collect(state))

    def wait(self) -> None:
        """Wait until the checkpoint under way is written, after the rows that it has behind it.

        Raises:
            TrainingError: a parameter is not finite.
            CheckpointError: the disk is full, or the folder cannot be written, in some process.
        """
        self._saver.wait()

    def abandon(self) -> None:
        """Leave the checkpoint under way unwritten: the process ends at once."""
        self._saver.abandon()

    def close(self) -> None:
        """Wait for the checkpoint under way; errors are those of `wait`."""
        self._moving.remove()
        self.wait()

    def _collect(self, state: TrainState) -> Snapshot:
        self._step = state.step
        return state.snapshot(self.config)

    def _report(self, row: Row) -> None:
        with MetricsFile(self._saves) as file:
            file.append(row)


def load_summary_writer() -> Any:
    """Return TensorBoard's writer.

    Raises:
        ConfigError: the extra 'track' is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "train.tensorboard needs TensorBoard, which is not installed", 'pip install "moesaic[track]"'
        ) from None
    return SummaryWriter


class TensorBoardHook:
    """Write every number of the row as a TensorBoard scalar."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self.writer = load_summary_writer()(str(folder), purge_step=first_step)

    def after_step(self, state: TrainState, row: Row) -> None:
        """Write the numbers."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(name, value, state.step)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()
