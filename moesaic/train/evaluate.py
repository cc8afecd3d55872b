"""Held-out loss."""

from collections.abc import Iterable

import torch

from moesaic.comm.world import ALONE, World
from moesaic.config.train import TrainConfig
from moesaic.data.loader import Batch, Loader
from moesaic.models.model import LanguageModel
from moesaic.ops.loss import IGNORED_LABEL


def held_out_batches(loader: Loader, config: TrainConfig) -> list[Batch]:
    """Return what a run is evaluated on, every time the same; empty where nothing is held out."""
    return list(loader.evaluation_batches(config.micro_batch, config.evaluate_batches))


@torch.no_grad()
def evaluate(model: LanguageModel, batches: Iterable[Batch], world: World = ALONE) -> float:
    """Return the mean cross-entropy over all labels of the batches, nats a token.

    Args:
        batches: of each, a process computes its rows.
        world: the processes that compute the model; all must call.
    """
    model.eval()
    total, num_labels = 0.0, 0
    for batch in batches:
        part = batch.rows(world.rows(len(batch.ids_BS))).to(world.device)
        total += float(model.score(part.ids_BS, part.labels_BS, part.positions_BS, part.document_ids_BS)[0])
        num_labels += int((batch.labels_BS != IGNORED_LABEL).sum())
    return world.total([total])[0] / max(1, num_labels)
