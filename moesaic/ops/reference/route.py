"""Oracle of `ops/route.py`: plain Python over lists."""

import math

import torch
from torch import Tensor


def top_k(scores_RE: Tensor, k: int) -> Tensor:
    """Sort every row by (score down, index up) and take the first k indices."""
    rows = [
        sorted(range(len(row)), key=lambda column: (-row[column], column))[:k] for row in scores_RE.float().tolist()
    ]
    return torch.tensor(rows, dtype=torch.int64).view(len(rows), k)


def limit_groups(scores_TE: Tensor, num_groups: int, num_chosen: int, num_best: int) -> Tensor:
    """Score every group, sort the groups, and blank out the rest."""
    limited = scores_TE.tolist()
    for row in limited:
        size = len(row) // num_groups
        groups = [sorted(row[g * size : (g + 1) * size], reverse=True)[:num_best] for g in range(num_groups)]
        ranked = sorted(range(num_groups), key=lambda g: (-math.fsum(groups[g]), g))
        for group in ranked[num_chosen:]:
            row[group * size : (group + 1) * size] = [-math.inf] * size
    return torch.tensor(limited, dtype=scores_TE.dtype)


def keep_within_capacity(expert_ids_TK: Tensor, kept_TK: Tensor, num_experts: int, capacity: int) -> Tensor:
    """Walk the choices in order of priority and fill one list per expert."""
    taken = [0] * num_experts
    kept = [[False] * expert_ids_TK.shape[1] for _ in range(expert_ids_TK.shape[0])]
    for choice in range(expert_ids_TK.shape[1]):
        for token in range(expert_ids_TK.shape[0]):
            expert = int(expert_ids_TK[token, choice])
            if kept_TK[token, choice] and taken[expert] < capacity:
                taken[expert] += 1
                kept[token][choice] = True
    return torch.tensor(kept, dtype=torch.bool).view(expert_ids_TK.shape)
