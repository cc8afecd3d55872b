"""What happens around the steps of a run, besides training: a table of hooks, called in order."""

from pathlib import Path
from typing import Any, Protocol

from moesaic.checkpoint.store import CheckpointStore
from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError
from moesaic.telemetry.metrics import MetricsFile
from moesaic.train.evaluate import evaluate
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
        """Evaluate where it is due and the data has a held-out part."""
        train = self.config.train
        if state.step % train.evaluation_interval and state.step != train.steps:
            return
        batches = list(state.loader.evaluation_batches(train.micro_batch, train.evaluate_batches))
        if batches:
            state.held_out_loss = row["held_out_loss"] = evaluate(state.model, batches)

    def close(self) -> None:
        """Nothing is held."""


class MetricsHook:
    """Append the row to metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.file = MetricsFile(path)

    def after_step(self, state: TrainState, row: Row) -> None:
        """Write the row."""
        self.file.append(row)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class SaveHook:
    """Save a checkpoint every so many steps and after the last one."""

    def __init__(self, config: RunConfig, store: CheckpointStore) -> None:
        self.config = config
        self.store = store

    def after_step(self, state: TrainState, row: Row) -> None:
        """Save where it is due."""
        if state.step % self.config.checkpoint.every == 0 or state.step == self.config.train.steps:
            self.save(state)

    def save(self, state: TrainState) -> None:
        """Save now."""
        self.store.save(state.snapshot(self.config))

    def close(self) -> None:
        """Nothing is held."""


class TensorBoardHook:
    """Write every number of the row as a TensorBoard scalar.

    Raises:
        ConfigError: the extra 'track' is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "train.tensorboard needs TensorBoard, which is not installed", 'pip install "moesaic[track]"'
            ) from None
        self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def after_step(self, state: TrainState, row: Row) -> None:
        """Write the numbers."""
        for name, value in row.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(name, value, state.step)

    def close(self) -> None:
        """Flush and close."""
        self.writer.close()
