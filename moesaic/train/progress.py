"""Live progress of a run, on standard error."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moesaic.train.hooks import Row
from moesaic.train.state import TrainState
from moesaic.units import format_seconds

# Without a terminal, one line this often is enough.
_SECONDS_BETWEEN_LINES = 10.0


class ProgressHook:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, num_steps: int, first_step: int) -> None:
        self.console = console
        self.num_steps = num_steps
        self.first_step = first_step
        self.began = self.printed = time.monotonic()
        self.held_out = ""
        self.bar: Progress | None = None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self.task = self.bar.add_task("training", total=num_steps, completed=first_step, figures="")
            self.bar.start()

    def after_step(self, state: TrainState, row: Row) -> None:
        """Show the figures of the step."""
        if "held_out_loss" in row:
            self.held_out = f"  held-out {row['held_out_loss']:.3f}"
        figures = f"loss {row['loss']:.3f}{self.held_out}"
        if "max_violation" in row:
            figures += f"  imbalance {row['max_violation']:.2f}"
        figures += f"  {row['tokens_per_s']:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=state.step, figures=figures)
            return
        now = time.monotonic()
        if now - self.printed >= _SECONDS_BETWEEN_LINES or state.step == self.num_steps or "held_out_loss" in row:
            self.printed = now
            left = (now - self.began) / (state.step - self.first_step) * (self.num_steps - state.step)
            self.console.print(f"step {state.step}/{self.num_steps}  {figures}  {format_seconds(left)} left")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.stop()
