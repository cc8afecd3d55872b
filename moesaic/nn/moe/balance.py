"""Balancing: two losses and the loss-free bias. All are returned or applied on request, never kept.

Load fractions sum to one, so a perfectly even load gives a balance loss of exactly 1 at every E and K. (Other
libraries let them sum to K; the same coefficient then means K times the pressure.)

Of a batch in parts, each loss is what the tokens at hand contribute: the parts' values and gradients add up to the
batch's.
"""

import torch
from torch import Tensor

from moesaic.nn.moe.counts import Counts, count
from moesaic.nn.moe.router import Routing


def balance_loss(routing: Routing, num_experts: int, counts: Counts | None = None) -> Tensor:
    """Return E * sum_e f_e P_e over all tokens (Fedus et al., 2021, "Switch Transformers", equation 4).

    f_e is the share of all choices that fell on expert e, before any is dropped, and P_e the mean score of e;
    both sum to one. Range (0, E/K]: 1 when load or scores are even, below 1 where load and scores disagree, E/K
    when the same K experts get every choice and all of the score. The gradient goes through P only. Zero for no
    tokens.

    Args:
        counts: of the batch that the tokens are a part of; None: they are all of it.
    """
    counts = count(routing, num_experts) if counts is None else counts
    choices_E = counts.load.tokens_per_expert_E
    fractions_E = choices_E.to(routing.scores_TE.dtype) / choices_E.sum().clamp_min(1)
    means_E = routing.scores_TE.sum(0) / counts.num_tokens.clamp_min(1)
    return num_experts * (fractions_E * means_E).sum()


def sequence_balance_loss(
    routing: Routing, num_experts: int, sequence_ids_T: Tensor, counts: Counts | None = None
) -> Tensor:
    """Return the mean over sequences of E * sum_e f_se P_se (DeepSeek-AI, 2024, "DeepSeek-V3", equations 17
    to 20).

    As `balance_loss`, with load fractions and mean scores taken within each sequence; sequences without
    tokens do not count. Range (0, E/K]: 1 when each sequence is even.

    Args:
        sequence_ids_T: which sequence each token is of, from 0.
        counts: as for `balance_loss`, with sequences counted.
    """
    counts = count(routing, num_experts, sequence_ids_T) if counts is None else counts
    scores_TE = routing.scores_TE
    num_sequences = int(sequence_ids_T.max()) + 1 if len(sequence_ids_T) else 0
    cell = sequence_ids_T[routing.chosen_token_ids] * num_experts + routing.chosen_expert_ids
    counts_BE = torch.bincount(cell, minlength=num_sequences * num_experts).view(num_sequences, num_experts)
    fractions_BE = counts_BE.to(scores_TE.dtype) / counts_BE.sum(1, keepdim=True).clamp_min(1)
    sums_BE = scores_TE.new_zeros(num_sequences, num_experts).index_add(0, sequence_ids_T, scores_TE)
    tokens_B = torch.bincount(sequence_ids_T, minlength=num_sequences)
    means_BE = sums_BE / tokens_B.clamp_min(1).unsqueeze(1)
    return num_experts * (fractions_BE * means_BE).sum() / counts.num_sequences.clamp_min(1)


def z_loss(logits_TE: Tensor, counts: Counts | None = None) -> Tensor:
    """Return the mean over tokens of logsumexp(logits)^2 (Zoph et al., 2022, "ST-MoE", equation 5).

    Range [0, inf); log(E)^2 when all logits are zero. Keeps router logits small. Zero for no tokens.

    Args:
        counts: as for `balance_loss`.
    """
    num_tokens = len(logits_TE) if counts is None else counts.num_tokens
    return logits_TE.logsumexp(-1).square().sum() / max(1, int(num_tokens))


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
