"""Routers: from a score per token and expert to the pairs that are computed.

    ROUTERS is the table. Each entry turns logits into a `Routing`: which (token, expert) pairs are computed,
    with which weight, and the probabilities that the balance loss looks at. All of it runs in float32.

| kind | scores | choice | weight of a chosen expert |
| --- | --- | --- | --- |
| softmax | softmax | K best, within the best groups if asked | its score, or its share of the K |
| sigmoid | sigmoid | K best of score plus balancing bias | its score without the bias, or its share |
| switch | softmax | the best one | its score |
| gshard | softmax | the best two, the second at random | its share of the two |
| expert_choice | softmax | each expert takes its M best tokens | its score |

With a capacity factor, an expert takes at most M = ceil(factor T K / E) rows in training. A choice beyond that
is dropped: the token goes on with its other experts, or with the residual stream alone. Evaluation drops nothing
unless it has a factor of its own.

Sources: Shazeer et al. (2017) softmax top-k; Lepikhin et al. (2020) GShard; Fedus et al. (2021) Switch; Zhou
et al. (2022) expert choice; DeepSeek-AI (2024) groups and sigmoid scores; Wang et al. (2024) loss-free
balancing bias.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moesaic.config.model import ModelConfig
from moesaic.nn.moe.batch import WHOLE, Batch
from moesaic.ops.route import keep_within_capacity, limit_groups, top_k


@dataclass(frozen=True)
class Routing:
    """The pairs that are computed, and what the losses and statistics need.

    Attributes:
        token_ids_N, expert_ids_N: the kept pairs, tokens ascending.
        weights_N: the factor of each kept pair; differentiable.
        chosen_token_ids, chosen_expert_ids: all choices, also those dropped for lack of room.
        scores_TE: non-negative, rows summing to one; differentiable.
        logits_TE: differentiable.
    """

    token_ids_N: Tensor
    expert_ids_N: Tensor
    weights_N: Tensor
    chosen_token_ids: Tensor
    chosen_expert_ids: Tensor
    scores_TE: Tensor
    logits_TE: Tensor

    def part(self, start: int, end: int) -> "Routing":
        """Return the routing of some of the tokens, renumbered from 0."""
        if (start, end) == (0, len(self.logits_TE)):
            return self
        kept_N = (self.token_ids_N >= start) & (self.token_ids_N < end)
        chosen = (self.chosen_token_ids >= start) & (self.chosen_token_ids < end)
        return Routing(
            self.token_ids_N[kept_N] - start,
            self.expert_ids_N[kept_N],
            self.weights_N[kept_N],
            self.chosen_token_ids[chosen] - start,
            self.chosen_expert_ids[chosen],
            self.scores_TE[start:end],
            self.logits_TE[start:end],
        )


class Router(nn.Module):
    """Score every expert for every token, and choose.

    `selection_bias` takes part in the sigmoid router's choice only; it gets no gradient, is moved after each
    step by `update_selection_bias` and is part of every checkpoint.
    """

    selection_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.selection_bias: Tensor | None
        bias_E = torch.zeros(config.num_experts, dtype=torch.float32) if config.router == "sigmoid" else None
        self.register_buffer("selection_bias", bias_E)

    def forward(self, hidden_TD: Tensor, batch: Batch = WHOLE) -> Routing:
        """Route tokens [T, D]; random only in training, where the router asks for it.

        Args:
            batch: of which these tokens are a part: they share room, and the experts that choose.
        """
        wide = torch.promote_types(hidden_TD.dtype, torch.float32)
        hidden_TD = hidden_TD.to(wide)
        if self.training and self.config.router_jitter_noise > 0:
            hidden_TD = hidden_TD * self._noise(hidden_TD, batch)
        logits_TE = functional.linear(hidden_TD, self.weight.to(wide))
        choose = ROUTERS[self.config.router]
        if not self._looks_at_others():
            return choose(logits_TE, self)
        start, _ = batch.place(len(logits_TE))
        return choose(batch.gather(logits_TE), self).part(start, start + len(logits_TE))

    def _looks_at_others(self) -> bool:
        """Tell whether what a token gets depends on the other tokens, or on their random numbers."""
        config = self.config
        is_random = self.training and config.router == "gshard" and config.gshard_random_second
        return is_random or config.router == "expert_choice" or self.capacity(1) is not None

    def _noise(self, hidden_TD: Tensor, batch: Batch) -> Tensor:
        """Draw for the whole batch, so that a token's noise does not depend on who computes it."""
        start, num_tokens = batch.place(len(hidden_TD))
        noise = self.config.router_jitter_noise
        noise_TD = hidden_TD.new_empty(num_tokens, hidden_TD.shape[1]).uniform_(1 - noise, 1 + noise)
        return noise_TD[start : start + len(hidden_TD)]

    def capacity(self, num_tokens: int) -> int | None:
        """Return the rows that an expert takes of this many tokens, or None for all that come.

        In evaluation the limit of training does not hold: what is dropped depends on the other tokens of the
        pass, and a text would change with its neighbours. Expert choice sees the whole pass anyway.
        """
        config = self.config
        factor = config.capacity_factor
        if not self.training and (config.eval_capacity_factor is not None or config.router != "expert_choice"):
            factor = config.eval_capacity_factor
        if factor is None:
            return None
        rows = factor * num_tokens * config.experts_per_token / config.num_experts
        # 1.1 * 100 / 2 is 55.00000000000001 in binary: an error of rounding must not add a row.
        return max(1, math.ceil(rows - 1e-9))


def _softmax(logits_TE: Tensor, router: Router) -> Routing:
    config = router.config
    scores_TE = logits_TE.softmax(-1)
    choosable_TE = limit_groups(scores_TE, config.n_group, config.topk_group, 1) if config.n_group > 1 else scores_TE
    expert_ids_TK = top_k(choosable_TE, config.experts_per_token)
    weights_TK = scores_TE.gather(1, expert_ids_TK)
    if config.norm_topk_prob:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    return _token_choice(expert_ids_TK, weights_TK, None, scores_TE, logits_TE, router)


def _sigmoid(logits_TE: Tensor, router: Router) -> Routing:
    config = router.config
    scores_TE = logits_TE.sigmoid()
    assert router.selection_bias is not None, "the sigmoid router has a bias"
    biased_TE = scores_TE.detach() + router.selection_bias
    if config.n_group > 1:
        biased_TE = limit_groups(biased_TE, config.n_group, config.topk_group, 2)
    expert_ids_TK = top_k(biased_TE, config.experts_per_token)
    weights_TK = scores_TE.gather(1, expert_ids_TK)
    tiny = torch.finfo(torch.float32).tiny
    if config.norm_topk_prob:
        weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True).clamp_min(tiny)
    shares_TE = scores_TE / scores_TE.sum(-1, keepdim=True).clamp_min(tiny)
    return _token_choice(expert_ids_TK, weights_TK, None, shares_TE, logits_TE, router)


def _switch(logits_TE: Tensor, router: Router) -> Routing:
    scores_TE = logits_TE.softmax(-1)
    expert_ids_TK = top_k(scores_TE, 1)
    return _token_choice(expert_ids_TK, scores_TE.gather(1, expert_ids_TK), None, scores_TE, logits_TE, router)


def _gshard(logits_TE: Tensor, router: Router) -> Routing:
    scores_TE = logits_TE.softmax(-1)
    expert_ids_TK = top_k(scores_TE, 2)
    weights_TK = scores_TE.gather(1, expert_ids_TK)
    weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
    kept_TK = None
    if router.training and router.config.gshard_random_second:
        # The second expert is kept with probability min(1, 2 w): a weak one seldom earns its cost.
        kept_TK = torch.ones_like(expert_ids_TK, dtype=torch.bool)
        kept_TK[:, 1] = torch.rand_like(weights_TK[:, 1]) < 2 * weights_TK[:, 1].detach()
    return _token_choice(expert_ids_TK, weights_TK, kept_TK, scores_TE, logits_TE, router)


def _expert_choice(logits_TE: Tensor, router: Router) -> Routing:
    """Let each expert take its M best tokens; it sees the whole sequence: for training and scoring."""
    num_tokens, num_experts = logits_TE.shape
    scores_TE = logits_TE.softmax(-1)
    fair_share = math.ceil(num_tokens * router.config.experts_per_token / num_experts)
    capacity = min(num_tokens, router.capacity(num_tokens) or fair_share)
    chosen_TE = torch.zeros_like(scores_TE, dtype=torch.bool)
    if capacity:
        chosen_TE.t().scatter_(1, top_k(scores_TE.t(), capacity), True)
    token_ids_N, expert_ids_N = chosen_TE.nonzero(as_tuple=True)
    weights_N = scores_TE[token_ids_N, expert_ids_N]
    return Routing(token_ids_N, expert_ids_N, weights_N, token_ids_N, expert_ids_N, scores_TE, logits_TE)


def _token_choice(
    expert_ids_TK: Tensor,
    weights_TK: Tensor,
    kept_TK: Tensor | None,
    scores_TE: Tensor,
    logits_TE: Tensor,
    router: Router,
) -> Routing:
    """Apply the capacity and flatten [T, K] choices to pairs."""
    num_tokens, num_choices = expert_ids_TK.shape
    capacity = router.capacity(num_tokens)
    if capacity is not None:
        all_TK = torch.ones_like(expert_ids_TK, dtype=torch.bool)
        kept_TK = keep_within_capacity(
            expert_ids_TK, all_TK if kept_TK is None else kept_TK, logits_TE.shape[1], capacity
        )
    chosen_tokens = torch.arange(num_tokens, device=logits_TE.device).repeat_interleave(num_choices)
    chosen_experts, weights = expert_ids_TK.reshape(-1), weights_TK.reshape(-1)
    if kept_TK is None:
        return Routing(chosen_tokens, chosen_experts, weights, chosen_tokens, chosen_experts, scores_TE, logits_TE)
    kept = kept_TK.reshape(-1)
    return Routing(
        chosen_tokens[kept],
        chosen_experts[kept],
        weights[kept],
        chosen_tokens,
        chosen_experts,
        scores_TE,
        logits_TE,
    )


ROUTERS: dict[str, Callable[[Tensor, Router], Routing]] = {
    "softmax": _softmax,
    "sigmoid": _sigmoid,
    "switch": _switch,
    "gshard": _gshard,
    "expert_choice": _expert_choice,
}
