"""Held-out loss."""

from collections.abc import Iterable

import torch

from moesaic.config.train import TrainConfig
from moesaic.data.loader import Batch, Loader
from moesaic.models.model import LanguageModel
from moesaic.ops.loss import IGNORED_LABEL


def held_out_batches(loader: Loader, config: TrainConfig) -> list[Batch]:
    """Return what a run is evaluated on, every time the same; empty where nothing is held out."""
    return list(loader.evaluation_batches(config.micro_batch, config.evaluate_batches))


@torch.no_grad()
def evaluate(model: LanguageModel, batches: Iterable[Batch]) -> float:
    """Return the mean cross-entropy over all labels of the batches, nats a token."""
    model.eval()
    total, num_labels = 0.0, 0
    for batch in batches:
        hidden_BSD = model.decode(batch.ids_BS, batch.positions_BS, batch.document_ids_BS).hidden_BSD
        total += float(model.cross_entropy_sum(hidden_BSD, batch.labels_BS))
        num_labels += int((batch.labels_BS != IGNORED_LABEL).sum())
    return total / max(1, num_labels)
