"""Who goes where: index arithmetic of expert choice, without a loop over tokens.

Ties go to the lower index on every backend. `top_k` gets this from one integer key per score: the bits of a
float32, made monotone, above the negated index. Keys are all distinct, so any selection algorithm agrees.
"""

import torch
from torch import Tensor

from moesaic.errors import ConfigError
from moesaic.ops.backend import choose_backend, load_gpu_module
from moesaic.ops.cpu import routing as compiled


def top_k(scores_RE: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest scores of each row, best first, ties to the lower index.

    Args:
        scores_RE: [R, E] floating point, compared as float32; infinities are fine, NaN counts as largest.
        k: 1..E.

    Returns:
        [R, k] int64.
    """
    num_columns = scores_RE.shape[-1]
    if not 1 <= k <= num_columns:
        raise ConfigError(f"cannot choose {k} of {num_columns} columns", f"k must lie within 1..{num_columns}")
    backend = choose_backend("top_k", scores_RE)
    if backend == "compiled":
        return compiled.top_k(scores_RE, k)
    if backend == "triton":
        return load_gpu_module("route").top_k(scores_RE, k)
    # Adding zero turns -0.0 into 0.0, which compare as equal but differ in their bits.
    scores_RE = scores_RE.detach().float() + 0.0
    bits = scores_RE.view(torch.int32)
    monotone = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)
    # A NaN may carry a sign (0 / 0 does on x86), which means nothing.
    monotone = monotone.masked_fill(scores_RE.isnan(), 0x7FFFFFFF).long()
    columns = torch.arange(num_columns, device=scores_RE.device)
    keys = (monotone << 32) - columns
    return keys.topk(k, dim=-1).indices


def limit_groups(scores_TE: Tensor, num_groups: int, num_chosen: int, num_best: int) -> Tensor:
    """Set to -inf the scores outside the best groups of each token.

    A group's score is the sum of its `num_best` largest scores (DeepSeek-AI, 2024, "DeepSeek-V3 Technical
    Report", 2.1.2, with two; "DeepSeek-V2", 2.2.2, with one).

    Args:
        scores_TE: [T, E] floating point; groups are contiguous runs of E / num_groups experts.
        num_groups: divides E.
        num_chosen: groups each token may use, 1..num_groups.
        num_best: how many scores stand for a group.
    """
    num_tokens, num_experts = scores_TE.shape
    size = num_experts // num_groups
    grouped = scores_TE.view(num_tokens, num_groups, size)
    group_scores = grouped.topk(min(num_best, size), dim=-1).values.sum(-1)
    allowed = torch.zeros_like(group_scores, dtype=torch.bool)
    allowed.scatter_(1, top_k(group_scores, num_chosen), True)
    return grouped.masked_fill(~allowed.unsqueeze(-1), float("-inf")).view_as(scores_TE)


def keep_within_capacity(expert_ids_TK: Tensor, kept_TK: Tensor, num_experts: int, capacity: int) -> Tensor:
    """Keep, for each expert, the first `capacity` of the choices still kept.

    First choices of all tokens come before second choices, and earlier tokens before later ones (Lepikhin
    et al., 2020, "GShard", algorithm 1).

    Returns:
        [T, K] bool, a subset of kept_TK.
    """
    num_tokens, num_choices = expert_ids_TK.shape
    # Choices already dropped queue at an expert of their own and take no room.
    experts_N = torch.where(kept_TK, expert_ids_TK, num_experts).t().reshape(-1)
    order_N = experts_N.argsort(stable=True)
    counts_E = torch.bincount(experts_N, minlength=num_experts + 1)
    starts_E = counts_E.cumsum(0) - counts_E
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N), device=order_N.device) - starts_E[experts_N[order_N]]
    within_TK = (place_N < capacity).view(num_choices, num_tokens).t()
    return kept_TK & within_TK
