"""One optimizer step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moesaic.comm.collective import TRAFFIC
from moesaic.comm.world import ALONE, World
from moesaic.config.run import RunConfig
from moesaic.data.loader import Batch
from moesaic.errors import TrainingError
from moesaic.models.model import LanguageModel
from moesaic.nn.moe.balance import update_selection_bias
from moesaic.nn.moe.load import ExpertLoad, merge_loads
from moesaic.ops.loss import IGNORED_LABEL
from moesaic.optim.schedule import learning_rate
from moesaic.parallel.gradient import Gradients, LocalGradients


@dataclass(frozen=True)
class StepResult:
    """What one step saw.

    Attributes:
        loss: mean cross-entropy of the batch before the update, nats a token; auxiliary losses not included.
        losses: auxiliary losses by name, unscaled.
        loads: choices per expert, by layer.
        grad_norm: global norm before clipping.
        num_tokens: tokens of the batch.
        traffic: messages and bytes that this process gave, by kind of collective; empty where it is alone.
    """

    loss: float
    losses: dict[str, float]
    loads: dict[int, ExpertLoad]
    grad_norm: float
    learning_rate: float
    num_tokens: int
    traffic: dict[str, int] = field(default_factory=dict)


def train_step(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    config: RunConfig,
    world: World = ALONE,
    gradients: Gradients | None = None,
) -> StepResult:
    """Compute gradients over the batch, one micro-batch at a time, and move the parameters.

    Args:
        batch: all of it; of each micro-batch, a process computes its rows.
        step: 1 for the first.
        world: the processes that compute the step; all must call.
        gradients: of the model; None: it is computed here alone.

    Raises:
        TrainingError: the loss or the gradient is not finite; the parameters have not moved.
    """
    model.train()
    TRAFFIC.take()  # what was sent between steps is no step's
    gradients = LocalGradients(model) if gradients is None else gradients
    gradients.clear()
    rate = learning_rate(step, config.train.steps, config.warmup_steps, config.optim)
    loss, losses, loads = _accumulate_gradients(model, batch, config, world, gradients)
    max_norm = math.inf if config.optim.clip_norm is None else config.optim.clip_norm
    grad_norm = gradients.clip(max_norm)
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise TrainingError(
            f"step {step}: the loss is {loss} and the gradient norm {grad_norm}; batch: {batch.describe()}",
            "lower optim.learning_rate or look at the named text; the last checkpoint is from before this step",
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    _balance(model, loads, config.model.bias_update_speed)
    return StepResult(loss, losses, loads, grad_norm, rate, batch.ids_BS.numel(), TRAFFIC.take())


def _accumulate_gradients(
    model: LanguageModel, batch: Batch, config: RunConfig, world: World, gradients: Gradients
) -> tuple[float, dict[str, float], dict[int, ExpertLoad]]:
    """Run forward and backward over micro-batches; every token counts the same, wherever it falls."""
    num_labels = int((batch.labels_BS != IGNORED_LABEL).sum())
    total, losses, all_loads = 0.0, dict[str, float](), []
    coefficients = {"balance_loss": config.model.router_aux_loss_coef, "z_loss": config.model.router_z_loss_coef}
    micro_batches = list(_micro_batches(batch, config.train.micro_batch))
    for index, micro_batch in enumerate(micro_batches):
        share = len(micro_batch.ids_BS) / len(batch.ids_BS)
        part = micro_batch.rows(world.rows(len(micro_batch.ids_BS))).to(world.device)
        summed, output = model.score(part.ids_BS, part.labels_BS, part.positions_BS, part.document_ids_BS)
        objective: Tensor = summed / max(1, num_labels)
        for name, value in output.losses.items():
            if coefficients[name]:
                objective = objective + share * coefficients[name] * value
            losses[name] = losses.get(name, 0.0) + share * float(value.detach())
        if index == len(micro_batches) - 1:
            gradients.expect_last()
        objective.backward()
        total += float(summed.detach()) / max(1, num_labels)
        all_loads.append(output.loads)
    gradients.complete()
    total, *values = world.total([total, *losses.values()])
    return total, dict(zip(losses, values, strict=True)), merge_loads(all_loads)


def _micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into runs of rows; the tensors are views."""
    for start in range(0, len(batch.ids_BS), size):
        yield batch.rows(slice(start, start + size))


def _balance(model: LanguageModel, loads: dict[int, ExpertLoad], speed: float) -> None:
    """Move the loss-free balancing biases by the load of the whole step."""
    for index, moe in model.moe_layers().items():
        if moe.router.selection_bias is not None and speed:
            update_selection_bias(moe.router.selection_bias, loads[index].tokens_per_expert_E, speed)
