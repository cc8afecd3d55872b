"""Replay of recorded routing: how often a cache policy would have found the page that a token needs."""

import bisect
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from moesaic.errors import ConfigError, DataError
from moesaic.memory.policy import Policy, make_policy

# The experts that were chosen, of each layer of each token; none twice.
Trace = Sequence[Sequence[Sequence[int]]]

_LINE_HINT = 'a line is one token, such as {"tok": 1, "layers": [[0, 7], [3, 5]]}: the experts that each layer chose'


class Belady(Policy):
    """The page whose next use is farthest away leaves: no policy has more hits, where there is room for each step.

    Args:
        uses: the experts that this layer will use in each step.

    Source: Belady (1966), A study of replacement algorithms for a virtual-storage computer.
    """

    def __init__(self, uses: Sequence[Collection[int]]) -> None:
        self._now = -1
        self._steps: dict[int, list[int]] = {}
        for step, experts in enumerate(uses):
            for expert in experts:
                self._steps.setdefault(expert, []).append(step)

    def step(self) -> None:
        """Go on in time."""
        self._now += 1

    def use(self, expert: int) -> None:
        """Do nothing: it is known."""

    def worth(self, expert: int) -> tuple[float]:
        """Return how near the next use after this step is."""
        steps = self._steps.get(expert, [])
        index = bisect.bisect_right(steps, self._now)
        return (-steps[index] if index < len(steps) else -math.inf,)


def replay(trace: Trace, num_experts: int, capacity: int, policy: str, **options: float) -> float:
    """Return the hit rate: the share of all uses, the first included, that found their page resident.

    Each layer has room for so many pages of its own, empty at first. A token's experts are used at the same time: none
    of their pages leaves for another of them. Those that are missing come one after another, and each stays unless all
    pages are of this token: then the rest passes through without being kept.

    Args:
        trace: what was chosen.
        num_experts: of a layer.
        capacity: pages a layer.
        policy: a name of `POLICIES`, or 'belady', which knows the future.
        options: of the policy.

    Raises:
        ConfigError: a negative capacity, or as `make_policy`.
        DataError: the trace has no use at all, or of an expert that there is not.
    """
    if capacity < 0:
        raise ConfigError(f"cannot replay with room for {capacity} pages", "capacity must be 0 or more")
    num_uses = sum(len(experts) for layers in trace for experts in layers)
    if num_uses == 0:
        raise DataError("cannot replay a trace in which no expert is used", "record some tokens")
    strange = {expert for layers in trace for experts in layers for expert in experts}.difference(range(num_experts))
    if strange:
        raise DataError(f"the trace uses expert {min(strange)}", f"ids must lie within 0..{num_experts - 1}")
    num_hits = 0
    for uses in zip(*trace, strict=True):
        keeper = Belady(uses) if policy == "belady" else make_policy(policy, **options)
        num_hits += _count_hits(uses, capacity, keeper)
    return num_hits / num_uses


def _count_hits(uses: Sequence[Sequence[int]], capacity: int, policy: Policy) -> int:
    resident: set[int] = set()
    num_hits = 0
    for experts in uses:
        policy.step()
        for expert in experts:
            policy.use(expert)
        missing = [expert for expert in experts if expert not in resident]
        num_hits += len(experts) - len(missing)
        for expert in missing:
            if len(resident) == capacity:
                candidates = resident.difference(experts)
                if not candidates:
                    break
                victim = policy.victim(candidates)
                resident.remove(victim)
                policy.remove(victim)
            resident.add(expert)
            policy.add(expert)
    return num_hits


def read_trace(path: Path) -> Trace:
    """Read a recorded trace: JSON lines, one token each, with the experts that each layer chose under 'layers'.

    Raises:
        DataError: a file that cannot be read or is empty, or a line that is no such token; the text tells which.
    """
    trace: list[list[list[int]]] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                num_layers = len(trace[0]) if trace else None
                try:
                    trace.append(_layers(line, num_layers))
                except ValueError as failure:
                    raise DataError(f"line {number} of trace '{path}' {failure}", _LINE_HINT) from None
    except OSError as failure:
        raise DataError(f"cannot read '{path}': {failure.strerror}", "check the path and its permissions") from None
    if not trace:
        raise DataError(f"trace '{path}' is empty", _LINE_HINT)
    return trace


def _layers(line: bytes, num_layers: int | None) -> list[list[int]]:
    """Return the experts of a line, or raise a ValueError that says what is wrong with it."""
    try:
        token = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    layers = token.get("layers") if isinstance(token, dict) else None
    if not isinstance(layers, list) or not layers:
        raise ValueError("has no list of 'layers'")
    if num_layers not in (None, len(layers)):
        raise ValueError(f"has {len(layers)} layers, those before it have {num_layers}")
    for index, experts in enumerate(layers):
        if not _is_choice(experts):
            raise ValueError(f"has in layer {index} no list of different expert ids")
    return layers


def _is_choice(experts: Any) -> bool:
    """Tell whether this is a list of different whole numbers from 0 up; true and false are none."""
    if not isinstance(experts, list) or not all(type(expert) is int and expert >= 0 for expert in experts):
        return False
    return len(set(experts)) == len(experts)
