"""Cross-entropy of next tokens."""

from torch import Tensor
from torch.nn import functional

IGNORED_LABEL = -100


def cross_entropy_sum(logits_TV: Tensor, labels_T: Tensor) -> Tensor:
    """Return the summed negative log-likelihood in nats, taken in float32; labels of -100 count nowhere."""
    return functional.cross_entropy(logits_TV.float(), labels_T, ignore_index=IGNORED_LABEL, reduction="sum")
