"""Oracle of `ops/sample.py`: a sort, a loop and sums over the tokens of a row, in plain Python."""

import math

import torch
from torch import Tensor


def filter_logits(
    logits_V: Tensor, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> Tensor:
    """Leave out tokens one filter after the other, and write down those that remain."""
    kept = {token: value / temperature for token, value in enumerate(logits_V.float().tolist())}
    best_first = sorted(kept, key=lambda token: (-kept[token], token))
    if top_k is not None:
        kept = {token: kept[token] for token in best_first[:top_k]}
    if top_p is not None:
        nucleus, reached = {}, 0.0
        shares = _softmax(kept)
        for token in (token for token in best_first if token in kept):
            if reached >= top_p:
                break
            nucleus[token] = kept[token]
            reached += shares[token]
        kept = nucleus
    if min_p is not None:
        shares = _softmax(kept)
        kept = {token: kept[token] for token in kept if shares[token] >= min_p * max(shares.values())}
    return torch.tensor([kept.get(token, -math.inf) for token in range(len(logits_V))])


def greedy(logits_BV: Tensor) -> Tensor:
    """Find the largest logit of each row, and the first place where it stands."""
    return torch.tensor([row.index(max(row)) for row in logits_BV.tolist()], dtype=torch.int64)


def _softmax(logits: dict[int, float]) -> dict[int, float]:
    best = max(logits.values())
    weights = {token: math.exp(value - best) for token, value in logits.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}
