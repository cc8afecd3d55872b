"""Every router again, with lists and loops only: from scores to pairs of token and expert."""

import math
from dataclasses import dataclass
from fractions import Fraction

from moesaic.config.model import ModelConfig

Row = list[float]


@dataclass(frozen=True)
class RoutedPair:
    """A choice, and the weight of the expert's output in the token's."""

    token: int
    expert: int
    weight: float


@dataclass(frozen=True)
class OracleRouting:
    """All choices in order of token and rank, and those of them that are computed."""

    chosen: list[RoutedPair]
    kept: list[RoutedPair]


def route(
    config: ModelConfig, scores: list[Row], biased: list[Row], draws: Row | None, training: bool
) -> OracleRouting:
    """Route tokens by their scores.

    Args:
        config: the router's.
        scores: what the weights are made of.
        biased: what the choice is made by.
        draws: gshard in training: one number in [0, 1) for each token.
        training: or else evaluation.
    """
    if config.router == "expert_choice":
        return _choose_tokens(config, scores, training)
    ranked = [_best_experts(config, row) for row in biased]
    weights = [_weights_of(config, row, experts) for row, experts in zip(scores, ranked, strict=True)]
    chosen = [
        RoutedPair(token, expert, weight)
        for token, (experts, shares) in enumerate(zip(ranked, weights, strict=True))
        for expert, weight in zip(experts, shares, strict=True)
    ]
    dropped = set()
    if draws is not None:
        dropped = {(token, ranked[token][1]) for token, drawn in enumerate(draws) if not drawn < 2 * weights[token][1]}
    queue = [
        (token, experts[rank])
        for rank in range(config.experts_per_token)
        for token, experts in enumerate(ranked)
        if (token, experts[rank]) not in dropped
    ]
    served = _serve(queue, _capacity_of(config, len(scores), training))
    return OracleRouting(chosen, [pair for pair in chosen if (pair.token, pair.expert) in served])


def _capacity_of(config: ModelConfig, num_tokens: int, training: bool) -> int | None:
    """Return ceil(factor T K / E), the factor as it is written in decimals."""
    factor = config.capacity_factor if training else config.eval_capacity_factor
    if factor is None and config.router == "expert_choice":
        factor = config.capacity_factor
    if factor is None:
        return None
    exact = Fraction(str(factor)) * num_tokens * config.experts_per_token / config.num_experts
    return max(1, math.ceil(exact))


def _best_experts(config: ModelConfig, row: Row) -> list[int]:
    allowed = list(range(config.num_experts))
    if config.n_group > 1:
        size = config.num_experts // config.n_group
        num_best = 2 if config.router == "sigmoid" else 1
        groups = [row[group * size : (group + 1) * size] for group in range(config.n_group)]
        values = [sum(sorted(group, reverse=True)[:num_best]) for group in groups]
        ranked = sorted(range(config.n_group), key=lambda group: (-values[group], group))[: config.topk_group]
        allowed = [expert for expert in allowed if expert // size in ranked]
    return sorted(allowed, key=lambda expert: (-row[expert], expert))[: config.experts_per_token]


def _weights_of(config: ModelConfig, row: Row, experts: list[int]) -> Row:
    scores = [row[expert] for expert in experts]
    shared = config.router == "gshard" or (config.router in ("softmax", "sigmoid") and config.norm_topk_prob)
    return [score / sum(scores) for score in scores] if shared else scores


def _serve(queue: list[tuple[int, int]], capacity: int | None) -> set[tuple[int, int]]:
    served: list[tuple[int, int]] = []
    for token, expert in queue:
        taken = sum(1 for _, other in served if other == expert)
        if capacity is None or taken < capacity:
            served.append((token, expert))
    return set(served)


def _choose_tokens(config: ModelConfig, scores: list[Row], training: bool) -> OracleRouting:
    num_tokens = len(scores)
    fair_share = math.ceil(Fraction(num_tokens * config.experts_per_token, config.num_experts))
    capacity = min(num_tokens, _capacity_of(config, num_tokens, training) or fair_share)
    pairs = []
    for expert in range(config.num_experts):
        best = sorted(range(num_tokens), key=lambda token: (-scores[token][expert], token))[:capacity]
        pairs += [RoutedPair(token, expert, scores[token][expert]) for token in best]
    pairs.sort(key=lambda pair: (pair.token, pair.expert))
    return OracleRouting(pairs, pairs)
