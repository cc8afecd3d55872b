"""What happens around the steps of a run, besides training: a table of hooks, called in order."""

import math
from pathlib import Path
from typing import Any, Protocol

from moesaic.checkpoint.store import CheckpointStore
from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError, TrainingError
from moesaic.telemetry.metrics import MetricsFile
from moesaic.train.evaluate import evaluate, held_out_batches
from moesaic.train.state import TrainState

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
    """Save a checkpoint every so many steps and after the last one."""

    def __init__(self, config: RunConfig, store: CheckpointStore, metrics: MetricsFile | None) -> None:
        """Take the metrics where this process writes them."""
        self.config = config
        self.store = store
        self.metrics = metrics

    def after_step(self, state: TrainState, row: Row) -> None:
        """Save where it is due."""
        if state.step % self.config.checkpoint.every == 0 or state.step == self.config.train.steps:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Save now, after the rows that the checkpoint has behind it; all processes must call, and the first writes.

        Raises:
            TrainingError: a parameter is not finite.
            CheckpointError: the disk is full, or the folder cannot be written.
        """
        state.check_finite()
        snapshot = state.snapshot(self.config)
        if self.metrics is not None:
            self.metrics.sync()
            self.store.save(snapshot)

    def close(self) -> None:
        """Nothing is held."""


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
