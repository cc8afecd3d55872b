"""Checkpoints that are written while training goes on.

    training     step 7 | collect |  step 8: forward, backward | move |  step 9 ...
    this thread                   | copy ......................| check, digest, write, flush, name

What a run saves changes only when the optimizer moves it. So the copy to memory of its own is made beside the forward
and backward of the next step, and training waits for no more than what is left of it then. The memory is kept from save
to save, and holds only what this rank writes.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.shard import Share, plan_shares
from moesaic.checkpoint.stopwatch import Stopwatch
from moesaic.checkpoint.store import CheckpointStore, Saved, Snapshot

Check = Callable[[Sequence[Share], Sequence[Tensor]], None]


@dataclass
class _Save:
    """A checkpoint under way.

    Attributes:
        state: plain data.
        began: when training was held up.
        watch: where the time goes.
        copied: set when what it holds may change.
        waits_since: when training began to wait for the copy; None: it has not.
        failure: why it was not written.
    """

    state: Mapping[str, Any]
    began: float
    watch: Stopwatch
    copied: threading.Event = field(default_factory=threading.Event)
    waits_since: float | None = None
    failure: BaseException | None = None
    thread: threading.Thread | None = None


class Saver:
    """Saves one checkpoint at a time; all ranks must call alike.

    Args:
        store: where they go.
        agreement: the ranks; of its own, where it saves beside training.
        asynchronous: whether training goes on meanwhile.
        check: raises where a checkpoint of these boxes must not be written.
        before: done by the first rank before a checkpoint gets its name.
        report: told by the first rank, of each that has been written: step, bytes, files, ranks and seconds.
    """

    def __init__(
        self,
        store: CheckpointStore,
        agreement: Agreement,
        asynchronous: bool = True,
        check: Check | None = None,
        before: Callable[[], None] | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._store = store
        self._agreement = agreement
        self._asynchronous = asynchronous
        self._check = check
        self._before = before
        self._report = report
        self._names: list[tuple[str, str]] = []
        self._shares: list[Share] = []
        self._staged: list[Tensor] = []
        self._save: _Save | None = None

    @property
    def has_failed(self) -> bool:
        """Tell whether a checkpoint could not be written, which `wait` then raises."""
        return self._save is not None and self._save.failure is not None

    def begin(self, collect: Callable[[], Snapshot]) -> None:
        """Begin to save, when the checkpoint before is written; what is collected must not change before `wait_copied`.

        Raises:
            CheckpointError: this one, where it is not asynchronous, or the one before could not be written.
        """
        began, watch = time.perf_counter(), Stopwatch()
        with watch.measure("wait"):
            self.wait()
        with watch.measure("collect"):
            snapshot = collect()
        with watch.measure("plan"):
            self._plan(snapshot)
        save = self._save = _Save(snapshot.state, began, watch)
        values = snapshot.values_of(self._shares)
        if not self._asynchronous:
            save.copied.set()
            self._write(save, values)
            self.wait()
            return
        watch.add("stall", time.perf_counter() - began)
        work = partial(self._copy_and_write, save, values)
        save.thread = threading.Thread(target=work, name="moesaic-save", daemon=True)
        save.thread.start()

    def wait_copied(self) -> None:
        """Wait until what is being saved may change."""
        save = self._save
        if save is not None and not save.copied.is_set():
            save.waits_since = time.perf_counter()
            save.copied.wait()

    def wait(self) -> None:
        """Wait until the checkpoint under way is written.

        Raises:
            CheckpointError: it could not be, on some rank.
            RuntimeError: a rank has ended or does not answer.
        """
        save = self._save
        if save is None:
            return
        if save.thread is not None:
            save.thread.join()
        self._save = None
        if save.failure is not None:
            raise save.failure

    def abandon(self) -> None:
        """Wait for nothing any more: the process ends, and the checkpoint under way with it."""
        self._save = None

    def _plan(self, snapshot: Snapshot) -> None:
        # What is saved, and who has what of it, stays through a run; it is the same on all ranks when it does not.
        names = [(folder, name) for folder, each in snapshot.tensors.items() for name in each]
        if names != self._names:
            self._shares, self._names, self._staged = plan_shares(snapshot.tensors, self._agreement), names, []

    def _copy_and_write(self, save: _Save, values: Sequence[Tensor]) -> None:
        try:
            with save.watch.measure("copy"):
                self._copy(values)
        except BaseException as failure:
            save.failure = failure
        finally:
            if save.waits_since is not None:
                save.watch.add("stall", time.perf_counter() - save.waits_since)
            save.copied.set()
        self._write(save, self._staged)

    def _copy(self, values: Sequence[Tensor]) -> None:
        if not self._staged:
            self._staged = [torch.empty(each.shape, dtype=each.dtype) for each in values]
        for mine, theirs in zip(self._staged, values, strict=True):
            if theirs.device.type == "cpu" and theirs.is_contiguous():
                # numpy copies in this thread alone: torch would wake others, which compute.
                np.copyto(_as_bytes(mine), _as_bytes(theirs))
            else:
                mine.copy_(theirs)

    def _write(self, save: _Save, values: Sequence[Tensor]) -> None:
        try:
            self._agreement.do(lambda: self._look_at(save, values))
            saved = self._store.write(save.state, self._shares, values, self._agreement, save.watch, self._before)
            if self._report is not None and self._agreement.is_first:
                self._report(self._describe(save, saved))
        except BaseException as failure:  # raised by `wait`
            save.failure = failure

    def _describe(self, save: _Save, saved: Saved) -> dict[str, Any]:
        total = time.perf_counter() - save.began
        seconds = {**saved.seconds, "total": total}
        if not self._asynchronous:
            seconds["stall"] = total
        return {
            "step": save.state["step"],
            "bytes": saved.num_bytes,
            "files": saved.num_files,
            "ranks": self._agreement.size,
            "seconds": {name: round(each, 6) for name, each in seconds.items()},
        }

    def _look_at(self, save: _Save, values: Sequence[Tensor]) -> None:
        if save.failure is not None:
            raise save.failure
        if self._check is not None:
            with save.watch.measure("check"):
                self._check(self._shares, values)


def _as_bytes(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.view(-1).view(torch.uint8).numpy()
    return array
