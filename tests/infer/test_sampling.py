"""Which token a sequence chooses from logits, and which logits it refuses."""

import math

import pytest
import torch

from moesaic.errors import UnsupportedError
from moesaic.infer.request import SamplingParams
from moesaic.infer.sequence import Sequence


def _sequence(temperature: float) -> Sequence:
    return Sequence(4, [1, 2, 3], SamplingParams(temperature=temperature, seed=0), 1, set(), None)


def test_draws_follow_the_softmax_when_many_are_taken() -> None:
    shares = [0.6, 0.3, 0.1]
    sequence = _sequence(1.0)
    logits_V = torch.tensor(shares).log()
    drawn = [sequence.choose(logits_V) for _ in range(3000)]
    for token, share in enumerate(shares):
        # Five standard deviations of a binomial share.
        assert abs(drawn.count(token) / 3000 - share) < 5 * math.sqrt(share * (1 - share) / 3000)


@pytest.mark.parametrize("temperature", [0.1, 1e-4])
def test_draws_vary_when_the_temperature_is_low_and_logits_are_as_near(temperature: float) -> None:
    sequence = _sequence(temperature)
    logits_V = torch.tensor([0.5 * temperature, 0.0])
    assert {sequence.choose(logits_V) for _ in range(50)} == {0, 1}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_are_refused_with_their_place_and_dtype_when_one_is(value: float, temperature: float) -> None:
    sequence = _sequence(temperature)
    named = "^prompt 4: the logits of token 3 are not finite in float16$"
    with pytest.raises(UnsupportedError, match=named) as raised:
        sequence.choose(torch.tensor([0.0, value, 1.0], dtype=torch.float16))
    assert "another dtype" in raised.value.hint
