"""Messages that travel while this process computes.

A thread sends them one after another, in the order in which they were begun, so ranks that begin alike send alike.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

import torch
from torch import Tensor

Arrival = Future[Tensor]


class Line:
    """One link to other ranks; its thread starts with the first message."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], Tensor], Arrival]] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, move: Callable[[], Tensor]) -> Arrival:
        """Have a message moved once those before it have come, without a gradient.

        Args:
            move: sends, waits, and returns what came. It may wait for an arrival on another line that began before.
        """
        if self._thread is None:
            # A daemon: a process that fails does not wait for messages that never come.
            self._thread = threading.Thread(target=self._serve, name="moesaic-line", daemon=True)
            self._thread.start()
        arrival = Arrival()
        self._queue.put((move, arrival))
        return arrival

    @torch.no_grad()
    def _serve(self) -> None:
        while True:
            move, arrival = self._queue.get()
            try:
                arrival.set_result(move())
            except BaseException as failure:  # told to whoever waits
                arrival.set_exception(failure)
            del move, arrival  # or the last message stays in memory
