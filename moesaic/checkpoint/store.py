"""The checkpoints of a run: one folder a step, whole or absent, the last few and the best kept.

checkpoints/step-00000100/state.json    step, position in the data, configuration, losses; files and their checksums
                          model/        weights and balancing biases, by our names
                          optimizer/    moments, as '<parameter>/<moment>'
                          random/       state of the random generator

In each of the three, rank-00000.safetensors holds what the first rank wrote, and so on.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.atomic import atomic_folder, remove_folder, remove_leftovers, temporary_folder, write_error
from moesaic.checkpoint.folder import STATE, read_json
from moesaic.checkpoint.manifest import describe_files
from moesaic.checkpoint.shard import Digest, Share, Tensors, own_values, plan_shares, write_shares
from moesaic.checkpoint.stopwatch import Stopwatch
from moesaic.errors import CheckpointError

# The folders of a checkpoint.
MODEL, OPTIMIZER, RANDOM = "model", "optimizer", "random"


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on.

    Attributes:
        state: plain data; holds at least `step`, and `held_out_loss` (None before the first evaluation).
        tensors: tensors by name, by folder; this rank's parts of those that are spread over ranks.
    """

    state: Mapping[str, Any]
    tensors: Tensors

    def values_of(self, shares: Sequence[Share]) -> list[Tensor]:
        """Return the values of boxes; the memory is shared."""
        return [own_values(self.tensors[share.folder][share.name]) for share in shares]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has been written.

    Attributes:
        path: the folder.
        num_bytes, num_files: of its tensors.
        seconds: that each part of the work took, on the rank on which it took longest.
    """

    path: Path
    num_bytes: int
    num_files: int
    seconds: dict[str, float]


class CheckpointStore:
    """Saves, lists and retires the checkpoints in one folder."""

    def __init__(self, folder: Path, keep_last: int, keep_best: bool) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.keep_best = keep_best
        if folder.is_dir():
            remove_leftovers(folder)

    def save(self, snapshot: Snapshot, agreement: Agreement | None = None) -> Path:
        """Write a checkpoint at once, then remove those that are no longer kept; all ranks must call.

        Raises:
            CheckpointError: it cannot be written; earlier checkpoints stay whole.
        """
        agreement = agreement or Agreement()
        shares = plan_shares(snapshot.tensors, agreement)
        return self.write(snapshot.state, shares, snapshot.values_of(shares), agreement, Stopwatch()).path

    def write(
        self,
        state: Mapping[str, Any],
        shares: Sequence[Share],
        values: Sequence[Tensor],
        agreement: Agreement,
        watch: Stopwatch,
        before: Callable[[], None] | None = None,
    ) -> Saved:
        """Write the boxes of each rank; when all have, the first one names the folder; all ranks must call.

        Args:
            state: plain data.
            shares: this rank's boxes.
            values: of them.
            agreement: the ranks.
            watch: is told of the time.
            before: done by the first rank before the folder gets its name.

        Raises:
            CheckpointError: it cannot be written; earlier checkpoints stay whole.
        """
        path = self.folder / f"step-{state['step']:08d}"
        with ExitStack() as stack:

            def make() -> None:
                if agreement.is_first:
                    stack.enter_context(atomic_folder(path))

            def write_own() -> dict[str, Digest]:
                try:
                    return write_shares(target, shares, values, agreement.rank, watch)
                except OSError as failure:
                    raise write_error(path, failure) from failure

            def publish() -> dict[str, float]:
                with watch.measure("publish"):
                    if agreement.is_first:
                        if before is not None:
                            before()
                        (target / STATE).write_text(json.dumps({**described, **state}, indent=1))
                        stack.close()
                        self._retire()
                return watch.seconds

            target = temporary_folder(path)
            agreement.do(make)
            each = agreement.do(write_own)
            digests = {name: digest for digests in each for name, digest in digests.items()}
            described = describe_files(digests)
            times = agreement.do(publish)
        names = {name for seconds in times for name in seconds}
        seconds = {name: max(each.get(name, 0.0) for each in times) for name in sorted(names)}
        return Saved(path, sum(digest.num_bytes for digest in digests.values()), len(digests), seconds)

    def steps(self) -> dict[int, Path]:
        """Return the checkpoints by step, ascending."""
        paths = self.folder.glob("step-*") if self.folder.is_dir() else []
        found = {int(path.name[5:]): path for path in paths if re.fullmatch(r"step-\d+", path.name)}
        return dict(sorted(found.items()))

    def latest(self) -> Path | None:
        """Return the checkpoint of the highest step, if there is one."""
        return next(reversed(self.steps().values()), None)

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: they belong to a course that a run has left."""
        for later, path in self.steps().items():
            if later > step:
                remove_folder(path)

    def _retire(self) -> None:
        steps = self.steps()
        kept = set(list(steps)[-self.keep_last :])
        losses = {step: _held_out_loss(path) for step, path in steps.items()}
        measured = {step: loss for step, loss in losses.items() if loss is not None}
        if self.keep_best and measured:
            # A loss is carried on until the next evaluation: of equal ones, the first was measured.
            kept.add(min(measured, key=lambda step: (measured[step], step)))
        for step, path in steps.items():
            if step not in kept:
                remove_folder(path)


def _held_out_loss(path: Path) -> float | None:
    try:
        loss = read_json(path / STATE).get("held_out_loss")
    except CheckpointError:  # a damaged one is no reason to stop a run
        return None
    return loss if loss is not None and math.isfinite(loss) else None
