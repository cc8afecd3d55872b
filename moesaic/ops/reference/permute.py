"""Oracle of `ops/permute.py`: one Python loop per movement."""

import torch
from torch import Tensor


def permute(hidden_TD: Tensor, token_ids_N: Tensor, expert_ids_N: Tensor, num_experts: int) -> Tensor:
    """Append, expert by expert, the rows of the tokens that chose it."""
    rows = [
        hidden_TD[token]
        for expert in range(num_experts)
        for token, chosen in zip(token_ids_N.tolist(), expert_ids_N.tolist(), strict=True)
        if chosen == expert
    ]
    return torch.stack(rows) if rows else hidden_TD[:0]


def combine(rows_ND: Tensor, weights_N: Tensor, token_ids_N: Tensor, expert_ids_N: Tensor, num_tokens: int) -> Tensor:
    """Walk the pairs in expert order and add each weighted row to its token."""
    pairs = sorted(range(len(expert_ids_N)), key=lambda pair: (int(expert_ids_N[pair]), pair))
    summed_TD = [torch.zeros_like(rows_ND[0]) if len(rows_ND) else rows_ND.new_zeros(rows_ND.shape[1])] * num_tokens
    for row, pair in enumerate(pairs):
        token = int(token_ids_N[pair])
        summed_TD[token] = summed_TD[token] + weights_N[pair] * rows_ND[row]
    return torch.stack(summed_TD)
