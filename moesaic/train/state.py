"""Everything that moves during a run, and how it is saved and brought back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.checkpoint.store import Snapshot
from moesaic.comm.world import ALONE, World
from moesaic.config.run import RunConfig
from moesaic.data.loader import Loader
from moesaic.errors import CheckpointError, TrainingError
from moesaic.models.model import LanguageModel
from moesaic.optim.table import KEPT
from moesaic.parallel.gradient import Gradients
from moesaic.parallel.part import load_parts, local_part, own_part, whole


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

    def check_finite(self) -> None:
        """Refuse to go on with a model that has diverged.

        Raises:
            TrainingError: a parameter holds a value that is not finite.
        """
        for name, parameter in self.model.named_parameters():
            if not local_part(parameter).isfinite().all():
                raise TrainingError(
                    f"step {self.step}: parameter '{name}' is no longer finite; nothing is saved from here on",
                    "lower optim.learning_rate; what was saved before is finite",
                )

    def snapshot(self, config: RunConfig) -> Snapshot:
        """Collect the state; tensors are not copied, so save before the next step.

        What is spread over processes is brought together; all must call.
        """
        # First of all: after an evaluation, this is what lets go of parameters that FSDP has gathered.
        weights = self.model.state_dict()
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        moments = {
            f"{names[parameter]}/{key}": whole(torch.as_tensor(value))
            for parameter, state in self.optimizer.state.items()
            for key, value in state.items()
        }
        plain = {
            "format": 1,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "held_out_loss": self.held_out_loss,
            "loader": self.loader.state_dict(),
            "config": config.model_dump(mode="json"),
        }
        tensors = {
            "model": {name: whole(tensor) for name, tensor in weights.items()},
            "optimizer": moments,
            "random": {"torch": torch.get_rng_state()},
        }
        return Snapshot(plain, tensors)

    def restore(self, snapshot: Snapshot) -> None:
        """Take over a saved state, bit for bit.

        Raises:
            CheckpointError: a part is missing, or its tensors do not fit this model or optimizer.
            DataError: the data has changed since.
        """
        try:
            self._restore_weights(snapshot.tensors["model"])
            self._restore_moments(snapshot.tensors["optimizer"], snapshot.state["config"]["optim"]["kind"])
            torch.set_rng_state(snapshot.tensors["random"]["torch"])
            self.loader.load_state_dict(snapshot.state["loader"])
            self.step = snapshot.state["step"]
            self.tokens = snapshot.state["tokens"]
            self.seconds = snapshot.state["seconds"]
            self.held_out_loss = snapshot.state["held_out_loss"]
        except KeyError as failure:
            raise CheckpointError(f"the checkpoint lacks {failure}", "resume from another one") from None

    def _restore_weights(self, weights: Mapping[str, Tensor]) -> None:
        try:
            load_parts(self.model, weights)
        except RuntimeError as failure:
            raise CheckpointError(
                f"the checkpoint's weights do not fit the model: {str(failure).splitlines()[1].strip()}",
                "resume with the recipe that the run began with",
            ) from None

    def _restore_moments(self, moments: Mapping[str, Tensor], kind: str) -> None:
        parameters = dict(self.model.named_parameters())
        expected = {
            f"{name}/{moment}": torch.Size() if moment == "step" else parameter.shape
            for name, parameter in parameters.items()
            for moment in KEPT[kind]
        }
        found = {key: value.shape for key, value in moments.items()}
        if found != expected:
            wrong = min(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
            shapes = [None if shapes.get(wrong) is None else tuple(shapes[wrong]) for shapes in (expected, found)]
            raise CheckpointError(
                f"the checkpoint's moments do not fit the model: '{wrong}' should be {shapes[0]}, is {shapes[1]}",
                "resume from another one, with the recipe that the run began with",
            )
        for key, value in moments.items():
            name, _, moment = key.rpartition("/")
            self.optimizer.state[parameters[name]][moment] = (
                value if moment == "step" else own_part(parameters[name], value)
            )
