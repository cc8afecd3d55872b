"""Everything that moves during a run, and how it is saved and brought back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.restore import restore_tensors
from moesaic.checkpoint.shard import Share
from moesaic.checkpoint.store import MODEL, OPTIMIZER, RANDOM, Snapshot
from moesaic.comm.world import ALONE, World
from moesaic.config.run import RunConfig
from moesaic.data.loader import Loader
from moesaic.errors import CheckpointError, TrainingError
from moesaic.models.model import LanguageModel
from moesaic.optim.table import KEPT
from moesaic.parallel.gradient import Gradients


@dataclass
class TrainState:
    """The moving parts of a run.

    Attributes:
        gradients: of the model, over all processes.
        world: the processes that have the model.
        step: optimizer steps done.
        tokens: tokens seen.
        seconds: time spent training, over all sittings.
        held_out_loss: of the last evaluation; None before the first.
    """

    model: LanguageModel
    optimizer: torch.optim.Optimizer
    loader: Loader
    gradients: Gradients
    world: World = ALONE
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    held_out_loss: float | None = None

    def snapshot(self, config: RunConfig) -> Snapshot:
        """Collect the state; tensors are not copied, and those that are spread over processes stay so."""
        # First of all: after an evaluation, this is what lets go of parameters that FSDP has gathered.
        weights = self.model.state_dict()
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        moments = {
            f"{names[parameter]}/{key}": torch.as_tensor(value)
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }
        plain = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "held_out_loss": self.held_out_loss,
            "loader": self.loader.state_dict(),
            "config": config.model_dump(mode="json"),
        }
        # Random choices are of the whole batch, so all processes draw alike: one state is that of all.
        return Snapshot(plain, {MODEL: weights, OPTIMIZER: moments, RANDOM: {"torch": torch.get_rng_state()}})

    def restore(self, path: Path, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint, bit for bit, whatever processes wrote it; all must call.

        Args:
            path: the checkpoint.
            state: what `read_state` says of it.

        Raises:
            CheckpointError: a part is missing or damaged, or its tensors do not fit this model or optimizer.
            DataError: the data has changed since.
        """
        try:
            self.loader.load_state_dict(state["loader"])
            self.step = state["step"]
            self.tokens = state["tokens"]
            self.seconds = state["seconds"]
            self.held_out_loss = state["held_out_loss"]
            kind = state["config"]["optim"]["kind"]
        except KeyError as failure:
            raise CheckpointError(f"the checkpoint lacks {failure}", "resume from another one") from None
        random = torch.get_rng_state()
        tensors = {MODEL: self.model.state_dict(), OPTIMIZER: self._new_moments(kind), RANDOM: {"torch": random}}
        restore_tensors(path, tensors, Agreement(self.world))
        torch.set_rng_state(random)

    def _new_moments(self, kind: str) -> dict[str, Tensor]:
        """Give the optimizer moments to be filled, spread as their parameters are, and return them by name."""
        moments = {}
        for name, parameter in self.model.named_parameters():
            for key in KEPT[kind]:
                empty = (
                    torch.zeros((), device=parameter.device) if key == "step" else torch.empty_like(parameter.detach())
                )
                self.optimizer.state[parameter][key] = moments[f"{name}/{key}"] = empty
        return moments


def check_finite(step: int, shares: Sequence[Share], values: Sequence[Tensor]) -> None:
    """Refuse to save a model that has diverged.

    Args:
        step: that is saved.
        shares: boxes of tensors of a snapshot.
        values: of them.

    Raises:
        TrainingError: one of the model holds a value that is not finite.
    """
    for share, each in zip(shares, values, strict=True):
        # The sum is fast, and finite unless a value is not, or they are large.
        if share.folder == MODEL and not (each.sum().isfinite() or each.isfinite().all()):
            raise TrainingError(
                f"step {step}: parameter '{share.name}' is no longer finite; nothing is saved from here on",
                "lower optim.learning_rate; what was saved before is finite",
            )
