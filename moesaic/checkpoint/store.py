"""The checkpoints of a run: one folder a step, whole or absent, the last few and the best kept.

checkpoints/step-00000100/state.json            step, position in the data, configuration, losses
                          model.safetensors     weights and balancing biases, by our names
                          optimizer.safetensors moments, as '<parameter>/<moment>'
                          random.safetensors    state of the random generator
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moesaic.checkpoint.atomic import atomic_folder, remove_folder, remove_leftovers, write_tensors
from moesaic.checkpoint.folder import STATE, read_json
from moesaic.errors import CheckpointError


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on.

    Attributes:
        state: plain data; holds at least `step`, and `held_out_loss` (None before the first evaluation).
        tensors: tensors by name, by file stem.
    """

    state: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


class CheckpointStore:
    """Saves, lists and retires the checkpoints in one folder."""

    def __init__(self, folder: Path, keep_last: int, keep_best: bool) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.keep_best = keep_best
        if folder.is_dir():
            remove_leftovers(folder)

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Raises:
            CheckpointError: it cannot be written; earlier checkpoints stay whole.
        """
        path = self.folder / f"step-{snapshot.state['step']:08d}"
        with atomic_folder(path) as target:
            for stem, tensors in snapshot.tensors.items():
                write_tensors(target / f"{stem}.safetensors", dict(tensors))
            (target / STATE).write_text(json.dumps(snapshot.state, indent=1))
        self._retire()
        return path

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


def load_snapshot(path: Path) -> Snapshot:
    """Read a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        state = read_json(path / STATE)
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    except (CheckpointError, SafetensorError, OSError) as failure:
        raise CheckpointError(
            f"checkpoint '{path}' is damaged: {failure}", "resume from an earlier one with --resume PATH"
        ) from None
    return Snapshot(state, tensors)
