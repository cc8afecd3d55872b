"""Balancing: two losses and the loss-free bias. All are returned or applied on request, never kept.

Load fractions sum to one, so a perfectly even load gives a balance loss of exactly 1 at every E and K. (Other
libraries let them sum to K; the same coefficient then means K times the pressure.)
"""

import torch
from torch import Tensor

from moesaic.nn.moe.router import Routing


def balance_loss(routing: Routing, num_experts: int) -> Tensor:
    """Return E * sum_e f_e P_e over all tokens (Fedus et al., 2021, "Switch Transformers", equation 4).

    f_e is the share of all choices that fell on expert e, before any is dropped, and P_e the mean score of e;
    both sum to one. Range (0, E/K]: 1 when load or scores are even, below 1 where load and scores disagree, E/K
    when the same K experts get every choice and all of the score. The gradient goes through P only. Zero for no
    tokens.
    """
    if len(routing.scores_TE) == 0:
        return routing.scores_TE.sum()
    counts_E = torch.bincount(routing.chosen_expert_ids, minlength=num_experts)
    fractions_E = counts_E.to(routing.scores_TE.dtype) / counts_E.sum()
    return num_experts * (fractions_E * routing.scores_TE.mean(0)).sum()


def sequence_balance_loss(routing: Routing, num_experts: int, sequence_ids_T: Tensor) -> Tensor:
    """Return the mean over sequences of E * sum_e f_se P_se (DeepSeek-AI, 2024, "DeepSeek-V3", equations 17
    to 20).

    As `balance_loss`, with load fractions and mean scores taken within each sequence; sequences without
    tokens do not count. Range (0, E/K]: 1 when each sequence is even.

    Args:
        sequence_ids_T: which sequence each token is of, from 0.
    """
    scores_TE = routing.scores_TE
    if len(scores_TE) == 0:
        return scores_TE.sum()
    num_sequences = int(sequence_ids_T.max()) + 1
    cell = sequence_ids_T[routing.chosen_token_ids] * num_experts + routing.chosen_expert_ids
    counts_BE = torch.bincount(cell, minlength=num_sequences * num_experts).view(num_sequences, num_experts)
    fractions_BE = counts_BE.to(scores_TE.dtype) / counts_BE.sum(1, keepdim=True).clamp_min(1)
    sums_BE = scores_TE.new_zeros(num_sequences, num_experts).index_add(0, sequence_ids_T, scores_TE)
    tokens_B = torch.bincount(sequence_ids_T, minlength=num_sequences)
    means_BE = sums_BE / tokens_B.clamp_min(1).unsqueeze(1)
    return num_experts * (fractions_BE * means_BE).sum() / (tokens_B > 0).sum()


def z_loss(logits_TE: Tensor) -> Tensor:
    """Return the mean over tokens of logsumexp(logits)^2 (Zoph et al., 2022, "ST-MoE", equation 5).

    Range [0, inf); log(E)^2 when all logits are zero. Keeps router logits small. Zero for no tokens.
    """
    return logits_TE.logsumexp(-1).square().sum() / max(1, len(logits_TE))


@torch.no_grad()
def update_selection_bias(bias_E: Tensor, tokens_per_expert_E: Tensor, speed: float) -> None:
    """Move the bias in place: b += speed * sign(mean load - load) (Wang et al., 2024, "Auxiliary-Loss-Free
    Load Balancing Strategy for Mixture-of-Experts", algorithm 1).

    Args:
        bias_E: float32; takes part in the choice of the next batch only.
        tokens_per_expert_E: choices of the whole step.
        speed: 0.001 in the paper.
    """
    counts_E = tokens_per_expert_E.double()
    bias_E.add_((counts_E.mean() - counts_E).sign().to(bias_E.dtype), alpha=speed)
