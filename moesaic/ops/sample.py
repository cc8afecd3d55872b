"""From logits to the next token.

Filters act in the order of the Hugging Face generation loop: temperature, top-k, top-p, min-p. Each row draws
from its own generator, so that a sequence samples the same tokens alone and in any batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moesaic.ops.route import top_k as stable_top_k


def filter_logits(
    logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> Tensor:
    """Return float32 logits of one row with excluded tokens at -inf.

    Args:
        logits_V: [V].
        temperature: above 0.
        top_k: keep this many best tokens, ties to the lower id.
        top_p: keep the fewest best tokens whose probabilities reach this sum.
        min_p: keep tokens with at least this share of the best token's probability.
    """
    logits_V = logits_V.float() / temperature
    if top_k is not None and top_k < len(logits_V):
        kept = stable_top_k(logits_V.unsqueeze(0), top_k)[0]
        limited_V = torch.full_like(logits_V, float("-inf"))
        limited_V[kept] = logits_V[kept]
        logits_V = limited_V
    if top_p is not None and top_p < 1:
        sorted_V, order_V = logits_V.sort(descending=True, stable=True)
        probabilities_V = sorted_V.softmax(-1)
        before_V = probabilities_V.cumsum(-1) - probabilities_V
        logits_V = logits_V.index_fill(0, order_V[before_V >= top_p], float("-inf"))
    if min_p is not None and min_p > 0:
        probabilities_V = logits_V.softmax(-1)
        logits_V = logits_V.masked_fill(probabilities_V < min_p * probabilities_V.max(), float("-inf"))
    return logits_V


def greedy(logits_BV: Tensor) -> Tensor:
    """Return the best token of each row, [B] int64, ties to the lower id."""
    return stable_top_k(logits_BV, 1)[:, 0]


def draw(logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token of each row from softmax(logits), [B] int64, row b with its own generator."""
    tokens = [
        torch.multinomial(row_V.softmax(-1), 1, generator=generator)
        for row_V, generator in zip(logits_BV, generators, strict=True)
    ]
    return torch.cat(tokens)
