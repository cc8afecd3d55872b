"""The tokens that may be drawn, against an oracle in plain Python: a sort, a loop and sums."""

import math

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from moesaic.infer.request import SamplingParams
from moesaic.infer.sequence import Sequence
from moesaic.ops.sample import filter_logits


def _probabilities(logits: dict[int, float]) -> dict[int, float]:
    best = max(logits.values())
    weights = {token: math.exp(value - best) for token, value in logits.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def _allowed(logits: list[float], params: SamplingParams) -> set[int]:
    kept = {token: value / params.temperature for token, value in enumerate(logits)}
    best_first = sorted(kept, key=lambda token: (-kept[token], token))
    if params.top_k is not None:
        kept = {token: kept[token] for token in best_first[: params.top_k]}
    if params.top_p is not None:
        nucleus, reached = {}, 0.0
        shares = _probabilities(kept)
        for token in (token for token in best_first if token in kept):
            if reached >= params.top_p:
                break
            nucleus[token] = kept[token]
            reached += shares[token]
        kept = nucleus
    if params.min_p is not None:
        shares = _probabilities(kept)
        kept = {token: kept[token] for token in kept if shares[token] >= params.min_p * max(shares.values())}
    return set(kept)


def _is_on_an_edge(logits: list[float], params: SamplingParams) -> bool:
    """Tell whether rounding could move a token over a limit."""
    near = [
        SamplingParams(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=None if params.top_p is None else min(1.0, params.top_p * factor),
            min_p=None if params.min_p is None else min(1.0, params.min_p * factor),
        )
        for factor in (1 - 1e-4, 1 + 1e-4)
    ]
    return len({frozenset(_allowed(logits, each)) for each in (params, *near)}) > 1


@given(
    logits=st.lists(st.integers(-8, 8).map(float), min_size=2, max_size=12),
    temperature=st.sampled_from([0.25, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.05, 0.95),
    min_p=st.none() | st.floats(0.01, 0.9),
)
def test_filters_leave_the_tokens_of_the_oracle_when_drawn_at_random(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assume(not _is_on_an_edge(logits, params))
    filtered = filter_logits(torch.tensor(logits), temperature, top_k, top_p, min_p).tolist()
    assert {token for token, value in enumerate(filtered) if value > -math.inf} == _allowed(logits, params)
    kept = {token: value for token, value in enumerate(filtered) if value > -math.inf}
    assert all(math.isclose(value, logits[token] / temperature, rel_tol=1e-6) for token, value in kept.items())


def test_draws_follow_the_softmax_when_many_are_taken() -> None:
    shares = [0.6, 0.3, 0.1]
    sequence = Sequence(0, [1], SamplingParams(temperature=1.0, seed=0), 1, [], None)
    logits_V = torch.tensor(shares).log()
    drawn = [sequence.choose(logits_V) for _ in range(3000)]
    for token, share in enumerate(shares):
        # Five standard deviations of a binomial share.
        assert abs(drawn.count(token) / 3000 - share) < 5 * math.sqrt(share * (1 - share) / 3000)
