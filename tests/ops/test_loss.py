"""Cross-entropy of next tokens."""

import math

import pytest
import torch

from moesaic.ops.loss import IGNORED_LABEL, cross_entropy_sum


def test_cross_entropy_is_log_v_a_token_when_logits_are_equal() -> None:
    loss = cross_entropy_sum(torch.zeros(3, 8), torch.tensor([0, 5, 7]))
    assert float(loss) == pytest.approx(3 * math.log(8))


def test_cross_entropy_counts_nothing_when_labels_are_ignored() -> None:
    logits_TV = torch.randn(3, 8)
    alone = cross_entropy_sum(logits_TV[:1], torch.tensor([2]))
    assert torch.equal(cross_entropy_sum(logits_TV, torch.tensor([2, IGNORED_LABEL, IGNORED_LABEL])), alone)
    assert float(cross_entropy_sum(logits_TV, torch.full((3,), IGNORED_LABEL))) == 0.0


def test_cross_entropy_is_taken_in_float32_when_logits_are_bfloat16() -> None:
    logits_TV = torch.randn(3, 8).bfloat16()
    loss = cross_entropy_sum(logits_TV, torch.tensor([0, 1, 2]))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy_sum(logits_TV.float(), torch.tensor([0, 1, 2])))
