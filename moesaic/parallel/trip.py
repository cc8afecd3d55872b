"""Which rows of tokens go to which rank, and what that rank is told of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import group_by_expert


@dataclass(frozen=True)
class Trip:
    """Which rows and pairs go to which rank.

    Attributes:
        rows: (token, rank) pairs, grouped by rank.
        order_N: the routed pairs by the rank that has their expert, tokens ascending.
        pair_ids_N: for each of those, its row among those of its rank, times X, plus its expert there.
        counts_W2: rows and pairs for each rank.
    """

    rows: Permutation
    order_N: Tensor
    pair_ids_N: Tensor
    counts_W2: Tensor


def plan_trip(tokens_N: Tensor, experts_N: Tensor, num_tokens: int, num_ranks: int, experts_per_rank: int) -> Trip:
    """Plan where the rows of tokens go.

    Args:
        tokens_N, experts_N: the routed pairs, tokens ascending.
    """
    ranks_N = experts_N // experts_per_rank
    goes_TW = torch.zeros(num_tokens, num_ranks, dtype=torch.bool, device=tokens_N.device)
    goes_TW[tokens_N, ranks_N] = True
    tokens_R, ranks_R = goes_TW.nonzero(as_tuple=True)
    rows = group_by_expert(tokens_R, ranks_R, num_tokens, num_ranks)
    starts_W = rows.counts_E.cumsum(0) - rows.counts_E
    row_TW = torch.zeros(num_tokens, num_ranks, dtype=torch.int64, device=tokens_N.device)
    row_TW[tokens_R, ranks_R] = rows.inverse_N - starts_W[ranks_R]
    order_N = ranks_N.argsort(stable=True)
    pair_ids_N = row_TW[tokens_N, ranks_N] * experts_per_rank + experts_N % experts_per_rank
    counts_W2 = torch.stack([rows.counts_E, torch.bincount(ranks_N, minlength=num_ranks)], dim=1)
    return Trip(rows, order_N, pair_ids_N[order_N], counts_W2)


def pack_pairs(weights_N: Tensor, pair_ids_N: Tensor) -> Tensor:
    """Return [N, 2], weights and ids as one message: the bits of each id in place of a weight."""
    bits_N = pair_ids_N.to(_integer(weights_N)).view(weights_N.dtype)
    return torch.stack([weights_N, bits_N], dim=1)


def unpack_pairs(pairs_N2: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights and ids again."""
    return pairs_N2[:, 0], pairs_N2[:, 1].detach().contiguous().view(_integer(pairs_N2)).long()


def group_received(pair_ids_N: Tensor, received_W2: Tensor, num_experts: int) -> Permutation:
    """Group by expert the rows that came.

    Args:
        pair_ids_N: of a `Trip` of each rank.
        received_W2: rows and pairs from each rank.
        num_experts: on this rank.
    """
    rows_W, pairs_W = received_W2.unbind(1)
    starts_W = rows_W.cumsum(0) - rows_W
    rows_N = pair_ids_N // num_experts + starts_W.repeat_interleave(pairs_W)
    return group_by_expert(rows_N, pair_ids_N % num_experts, int(rows_W.sum()), num_experts)


def _integer(weights: Tensor) -> torch.dtype:
    return torch.int64 if weights.dtype == torch.float64 else torch.int32
