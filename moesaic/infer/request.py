"""What is asked of a model, and what it answers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from moesaic.errors import RequestError

FinishReason = Literal["stop", "length", "error"]

# Of each number in a request: its kind, the test of its range, and what is accepted, in words.
_NUMBERS: dict[str, tuple[type[int] | type[float], Callable[[Any], bool], str]] = {
    "max_tokens": (int, lambda value: value >= 1, "a whole number, 1 or more"),
    "temperature": (float, lambda value: 0 <= value < math.inf, "a number, 0 or more"),
    "top_k": (int, lambda value: value >= 1, "a whole number, 1 or more"),
    "top_p": (float, lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "min_p": (float, lambda value: 0 <= value <= 1, "a number within 0 and 1"),
    "seed": (int, lambda value: 0 <= value < 2**63, "a whole number within 0 and 2^63"),
}


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to end.

    Attributes:
        max_tokens: most tokens to generate; None: until the model's context is full.
        temperature: 0 takes the best token; higher is more random.
        top_k: keep this many best tokens; None: all.
        top_p: keep the fewest best tokens whose probabilities reach this sum, within (0, 1]; None: all.
        min_p: keep tokens with at least this share of the best one's probability, within [0, 1]; None: all.
        stop: end before any of these strings; one string stands for itself, None for no string.
        seed: of the random draws; None: a new one each time.
        ignore_eos: go on after an end token.

    Raises:
        RequestError: a value is of another type or out of range.
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
        read = {name: _read_number(name, getattr(self, name)) for name in _NUMBERS}
        for name, value in {**read, "stop": _read_stop(self.stop)}.items():
            object.__setattr__(self, name, value)
        _check("ignore_eos", self.ignore_eos, isinstance(self.ignore_eos, bool), "True or False")


def _read_number(name: str, value: Any) -> int | float | None:
    """Return a number, numpy's too, as one of Python's; None, where it is accepted, as it is."""
    kind, is_in_range, wanted = _NUMBERS[name]
    if value is None and name != "temperature":
        return None
    # To Python a bool is a whole number; here it is a slip.
    is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    _check(name, value, is_number and is_in_range(value), wanted)
    return kind(value)


def _read_stop(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else () if stop is None else stop
    strings = tuple(strings) if isinstance(strings, Iterable) else (strings,)
    _check("stop", stop, all(isinstance(each, str) and each for each in strings), "non-empty strings")
    return strings


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
        finish_reason: 'stop' at an end token or stop string, 'length' at a limit, 'error' where it could not go on.
        error: what went wrong.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: Usage
    error: str | None = None


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
