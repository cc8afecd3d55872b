"""What `moesaic bench ops` is to reach, as a table, and which of it was."""

from dataclasses import dataclass
from typing import Any

from moesaic.bench.candidate import RIVALS
from moesaic.bench.deepspeed import NOT_MEASURED


@dataclass(frozen=True)
class Target:
    """A limit on a figure of every bfloat16 case of a level and a number of tokens.

    Attributes:
        level: of the cases.
        tokens: of the cases.
        figure: 'slow / fast', a ratio of times, or the name of a figure of the case.
        at: 'most' or 'least'.
        limit: the figure is at most, or at least, this.
    """

    level: str
    tokens: int
    figure: str
    at: str
    limit: float


TARGETS = (
    Target("forward", 1024, "moesaic / dense", "most", 1.25),
    Target("forward", 1024, "grouped_mm / moesaic", "least", 3.0),
    Target("forward_backward", 1024, "moesaic / dense", "most", 1.35),
    Target("forward_backward", 1024, "grouped_mm / moesaic", "least", 3.5),
    Target("forward_backward", 1024, "deepspeed / moesaic", "least", 3.0),
    Target("forward", 1, "percent_of_bandwidth", "least", 85.0),
    Target("forward", 1, "transformers / moesaic", "least", 2.0),
    Target("forward", 1, "moesaic / moesaic_int8", "least", 1.8),
    Target("forward", 1, "moesaic / moesaic_int4", "least", 3.0),
    Target("forward", 1024, "moesaic / moesaic_int8", "least", 1.5),
    Target("train_step", 1024, "transformers / moesaic", "least", 2.5),
)


def check_targets(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hold the cases against the table: a row for each case of each target, `met` false where nothing was measured."""
    return [
        _hold(target, case)
        for target in TARGETS
        for case in cases
        if (case["level"], case["T"], case["dtype"]) == (target.level, target.tokens, "bfloat16")
    ]


def hold(figure: str, at: str, limit: float, found: float | None) -> dict[str, Any]:
    """Hold a figure against a limit, at 'least' or at 'most'; None, what was not measured, does not meet it."""
    met = found is not None and (found >= limit if at == "least" else found <= limit)
    return {
        "figure": figure,
        "at": at,
        "limit": limit,
        "found": None if found is None else round(found, 3),
        "met": met,
    }


def time_of(name: str, times: dict[str, dict[str, float]]) -> float | None:
    """Return the median of a candidate, or of the fastest of a group of rivals; None: not measured."""
    # A training step has one time of a whole group, under its name.
    return min((times[each]["median_ms"] for each in (name, *RIVALS.get(name, ())) if each in times), default=None)


def _hold(target: Target, case: dict[str, Any]) -> dict[str, Any]:
    figure = _figure(target.figure, case)
    row = {"case": case["name"], "figure": target.figure, "at": target.at, "limit": target.limit, "found": figure}
    if figure is None:
        return {**row, "met": False, "reason": NOT_MEASURED if "deepspeed" in target.figure else "not measured"}
    return {**row, "met": figure <= target.limit if target.at == "most" else figure >= target.limit}


def _figure(figure: str, case: dict[str, Any]) -> float | None:
    if " / " not in figure:
        return case.get(figure)
    slow, fast = (time_of(name, case["times"]) for name in figure.split(" / "))
    return None if slow is None or fast is None else round(slow / fast, 3)
