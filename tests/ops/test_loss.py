"""Cross-entropy of next tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.ops.loss import IGNORED_LABEL, cross_entropy_sum
from moesaic.ops.reference import loss as oracle
from moesaic.testing.tolerance import is_close


@given(labels=st.lists(st.sampled_from([IGNORED_LABEL, 0, 3, 6]), max_size=5))
def test_cross_entropy_and_its_gradient_equal_the_oracle_when_some_labels_are_ignored(labels: list[int]) -> None:
    logits_TV = (3 * torch.randn(len(labels), 7)).requires_grad_()
    labels_T = torch.tensor(labels, dtype=torch.int64)
    found = cross_entropy_sum(logits_TV, labels_T)
    expected = oracle.cross_entropy_sum(logits_TV, labels_T, IGNORED_LABEL)
    assert is_close(found, expected)
    gradients = (torch.autograd.grad(loss, logits_TV)[0] for loss in (found, expected))
    assert is_close(*gradients)


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
