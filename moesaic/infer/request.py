"""What is asked of a model, and what it answers."""

from dataclasses import dataclass, field
from typing import Literal

from moesaic.errors import RequestError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to end.

    Attributes:
        max_tokens: most tokens to generate; None: until the model's context is full.
        temperature: 0 takes the best token; higher is more random.
        top_k: keep this many best tokens; None: all.
        top_p: keep the fewest best tokens whose probabilities reach this sum, within (0, 1]; None: all.
        min_p: keep tokens with at least this share of the best one's probability, within [0, 1]; None: all.
        stop: end before any of these strings.
        seed: of the random draws; None: a new one each time.
        ignore_eos: go on after an end token.

    Raises:
        RequestError: a value is out of range.
    """

    max_tokens: int | None = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "1 or more")
        _check("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or more")
        _check("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more")
        _check("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0, at most 1")
        _check("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "within 0 and 1")
        _check("stop", self.stop, all(self.stop), "non-empty strings")
        _check("seed", self.seed, self.seed is None or 0 <= self.seed < 2**63, "within 0 and 2^63")


def _check(name: str, value: object, accepted: bool, wanted: str) -> None:
    if not accepted:
        raise RequestError(f"{name} is {value!r}", f"accepted: {wanted}")


@dataclass(frozen=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: without the prompt, special tokens and the stop string; empty where the model has no tokenizer.
        token_ids: all generated tokens, an end token included.
        finish_reason: 'stop' at an end token or stop string, 'length' at a limit.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True)
class Delta:
    """A piece of an answer as it grows.

    Attributes:
        index: which prompt of the batch.
        text: characters that are final: no half character, no possible beginning of a stop string.
        completion: the whole answer, with the last piece only.
    """

    index: int
    text: str
    completion: Completion | None = field(default=None)
