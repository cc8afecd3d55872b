"""The held-out loss."""

import math

import pytest
import torch
from torch.nn import functional

from moesaic.data.loader import Batch
from moesaic.ops.loss import IGNORED_LABEL
from moesaic.testing.tiny import tiny_model
from moesaic.train.evaluate import evaluate


def _batch(num_sequences: int, seed: int) -> Batch:
    ids_BS = torch.randint(61, (num_sequences, 9), generator=torch.Generator().manual_seed(seed))
    return Batch(ids_BS[:, :-1], ids_BS[:, 1:].clone(), None, None, 0, ())


def test_loss_is_the_mean_over_all_labels_when_batches_differ_in_size() -> None:
    model, batches = tiny_model(), [_batch(3, 1), _batch(1, 2)]
    batches[0].labels_BS[0] = IGNORED_LABEL
    logits_TV = torch.cat([model(batch.ids_BS).flatten(0, 1) for batch in batches])
    labels_T = torch.cat([batch.labels_BS.flatten() for batch in batches])
    expected = functional.cross_entropy(logits_TV, labels_T, ignore_index=IGNORED_LABEL)
    assert evaluate(model, batches) == pytest.approx(expected.item(), rel=1e-6)


def test_capacity_of_evaluation_holds_when_the_model_was_in_training() -> None:
    model = tiny_model(capacity_factor=0.2, eval_capacity_factor=5.0)
    dropless = tiny_model()
    assert evaluate(model.train(), [_batch(2, 1)]) == pytest.approx(evaluate(dropless, [_batch(2, 1)]), rel=1e-6)


def test_loss_is_zero_when_there_is_nothing_to_evaluate() -> None:
    assert evaluate(tiny_model(), []) == 0.0
    assert math.isfinite(evaluate(tiny_model(), [_batch(1, 1)]))
