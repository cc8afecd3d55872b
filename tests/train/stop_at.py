"""Stopping a run in this process after a given step, as a signal from outside would."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from moesaic.train import loop


@contextmanager
def signal_after(step: int, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal while a step is being told."""
    tell = loop.metrics_row

    def tell_and_signal(state: Any, *rest: Any) -> Any:
        if state.step == step:
            signal.raise_signal(number)
        return tell(state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "metrics_row", tell_and_signal)
        yield
