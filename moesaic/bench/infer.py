"""Generating from a model larger than memory, and within it, against llama.cpp and transformers.

Every figure is of a process of its own, started from cold files, with its memory limited by a control group where a
budget is named. The programs are given the same prompts and the same following tokens. Rates of disk and memory are
measured in the same processes as what is held against them: the disk's before and after, of which the mean is taken.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from moesaic.bench.generation import Programs, rates_of
from moesaic.bench.measure import describe_machine
from moesaic.bench.replayed import EVEN
from moesaic.bench.worker import Answer
from moesaic.errors import MoesaicError
from moesaic.units import format_bytes

GIB = 2**30
LIMIT = 4 * GIB
SHARES = (0.125, 0.25, 0.5, 0.75)
# Hit rates of decayed frequency when the recorded trace is replayed: what a cache of these shares is to reach.
TRACED_HITS = {0.125: 0.434, 0.25: 0.618, 0.5: 0.822, 0.75: 0.937}
BUDGETS = (2, 3, 4, 6, 8)
BATCHES = (1, 2, 4, 8, 16, 32)

Report = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """What to measure, and how long.

    Attributes:
        programs: to measure.
        trace: a recorded routing; None: what needs one is left out.
        repeats: of each process; medians are reported.
        steps: tokens that moesaic generates; peers beyond their memory generate a few.
    """

    programs: Programs
    trace: Path | None
    repeats: int
    steps: int


def decode_under_limit(work: Work) -> Iterator[Report]:
    """Decode from 4 GiB: routed by the random weights, the same for all programs, and ours also evenly."""
    steps = {"moesaic": work.steps, "llama": 6, "transformers": 3}
    found = _take_turns(work, steps, 8, LIMIT)
    limits = {"llama": 5.0, "transformers": 10.0}
    yield {"name": "decode at 4 GiB", **found, "targets": [_hold(found, peer, limits[peer]) for peer in limits]}
    found["moesaic"] = _against_limits(work.programs.ask("moesaic", 8, work.steps, limit_bytes=LIMIT, trace=EVEN))
    yield {
        "name": "decode at 4 GiB, even",
        "moesaic": found["moesaic"],
        "targets": [_hold(found, peer, limits[peer]) for peer in limits],
    }


def decode_traced(work: Work) -> Iterator[Report]:
    """Decode with the recorded routing, with shares of the experts in memory."""
    if work.trace is None:
        return
    for share in SHARES:
        answer = work.programs.ask("moesaic", 1, 299, resident=share, trace=str(work.trace))
        report = _against_limits(answer)
        yield {
            "name": f"decode traced, {share:.1%} resident",
            **report,
            "targets": [
                _target("share_of_limit", report["share_of_limit"], 0.75),
                _target("hit_rate", report["hit_rate"], TRACED_HITS[share]),
            ],
        }


def prefill_under_limit(work: Work) -> Iterator[Report]:
    """Read prompts of 512 tokens within 4 GiB, held against one pass over the missing bytes and computing alone.

    The first one also waits for the system to hand out the memory of the slots.
    """
    rounds = 4
    compute_s = statistics.median(
        seconds
        for _ in range(work.repeats)
        for seconds in work.programs.ask("moesaic", 512, 1, trace=EVEN, rounds=rounds).values["prefill_s"]
    )
    for _ in range(work.repeats):
        answer = work.programs.ask("moesaic", 512, 1, limit_bytes=LIMIT, trace=EVEN, rounds=rounds)
        # Before the first round, then twice after each.
        read = [stats["bytes_read"] for stats in answer.values["stats"]][::2]
        missing = [after - before for before, after in pairwise(read)]
        disk = [statistics.fmean(rates) for rates in pairwise(answer.values["disk_gb_per_s"])]  # of each round
        seconds = answer.values["prefill_s"]
        limits = [max(count / 1e9 / rate, compute_s) for count, rate in zip(missing, disk, strict=True)]
        over = [each / limit for each, limit in zip(seconds, limits, strict=True)]
        ratio = round(statistics.median(over[1:]), 3)
        yield {
            "name": "prefill 512 at 4 GiB",
            "prefill_s": round(statistics.median(seconds[1:]), 3),
            "compute_s": round(compute_s, 3),
            "gb_read": [round(count / 1e9, 2) for count in missing],
            "each_prefill_s": [round(each, 3) for each in seconds],
            "each_disk_gb_per_s": [round(rate, 3) for rate in disk],
            "over_limit": ratio,
            "first_over_limit": round(over[0], 3),
            "targets": [{"figure": "over_limit", "at": "most", "limit": 1.3, "found": ratio, "met": ratio <= 1.3}],
        }


def in_memory(work: Work) -> Iterator[Report]:
    """Decode, and read a prompt of 512 tokens, with every weight in memory."""
    steps = {"moesaic": work.steps, "llama": 16, "transformers": 16}
    found = _take_turns(work, steps, 8, None)
    share = found["moesaic"]["share_of_limit"]
    yield {
        "name": "decode in memory",
        **found,
        "targets": [_target("share_of_limit", share, 0.8), _hold(found, "llama", 1.3)],
    }
    found = _take_turns(work, dict.fromkeys(steps, 1), 512, None)
    ratios = {
        name: found[name]["prefill_s"] / found["moesaic"]["prefill_s"] for name in steps if "prefill_s" in found[name]
    }
    yield {
        "name": "prefill 512 in memory",
        **found,
        "targets": [
            _target(f"{name} / moesaic", ratios.get(name), limit)
            for name, limit in (("transformers", 3.0), ("llama", 8.0))
        ],
    }


def low_bits(work: Work) -> Iterator[Report]:
    """Decode with weights of 8 and 4 bits, every one in memory; of 8 bits in the dense core."""
    steps = max(16, work.steps)
    rates: dict[int | None, list[float]] = {None: [], 8: [], 4: []}
    reports: dict[int | None, Report] = {}
    for _ in range(work.repeats):
        for bits, each in rates.items():
            reports[bits] = _against_limits(work.programs.ask("moesaic", 8, steps, bits=bits))
            each.append(reports[bits]["tokens_per_s"])
    exact = statistics.median(rates.pop(None))
    for bits, each in rates.items():
        over = round(statistics.median(each) / exact, 3)
        report = {**reports[bits], "tokens_per_s": statistics.median(each), "exact_tokens_per_s": exact}
        targets = [_target("over bfloat16", over, 1.7)] if bits == 8 else []
        yield {"name": f"decode in memory, {bits} bits", **report, "over_exact": over, "targets": targets}


def budgets(work: Work) -> Iterator[Report]:
    """Decode within other budgets, evenly routed."""
    for size in (*BUDGETS, None):
        limit = None if size is None else size * GIB
        report = _against_limits(work.programs.ask("moesaic", 8, work.steps, limit_bytes=limit, trace=EVEN))
        yield {"name": f"budget {'all' if size is None else f'{size} GiB'}", **report}


def batches(work: Work) -> Iterator[Report]:
    """Decode several sequences at once within 4 GiB, evenly routed.

    `bound` is what the misses leave of `over_one` where the disk is what is waited for: batch x misses a step of one
    sequence over those of the batch.
    """
    alone: Report | None = None
    for batch in BATCHES:
        steps = max(4, work.steps // 2)
        answer = work.programs.ask("moesaic", 8, steps, sequences=batch, limit_bytes=LIMIT, trace=EVEN)
        report: Report = {"name": f"batch {batch} at 4 GiB", **_against_limits(answer)}
        alone = alone or report
        report["over_one"] = round(report["tokens_per_s"] / alone["tokens_per_s"], 3)
        report["bound"] = round(batch * alone["misses_per_step"] / max(1, report["misses_per_step"]), 3)
        if batch == 8:
            report["targets"] = [_target("over_one", report["over_one"], 2.5)]
        yield report


CASES: dict[str, Callable[[Work], Iterator[Report]]] = {
    "decode": decode_under_limit,
    "traced": decode_traced,
    "prefill": prefill_under_limit,
    "memory": in_memory,
    "low-bits": low_bits,
    "budgets": budgets,
    "batches": batches,
}


def bench_infer(work: Work, names: list[str], report_progress: Progress) -> dict[str, Any]:
    """Measure cases of `CASES`; return plain data."""
    reports = []
    for name in names:
        report_progress(name)
        for report in CASES[name](work):
            report_progress(report["name"])
            reports.append(report)
    return {"benchmark": "infer", "machine": describe_machine(), "cases": reports}


def _take_turns(work: Work, steps: dict[str, int], prompt_tokens: int, limit: int | None) -> Report:
    """Ask each program in turn, round after round; a program that cannot do it is told with the reason."""
    answers: dict[str, list[Answer]] = {name: [] for name in steps}
    refused: dict[str, str] = {}
    for _ in range(work.repeats):
        for name, count in steps.items():
            if name in refused:
                continue
            try:
                answers[name].append(work.programs.ask(name, prompt_tokens, count, limit_bytes=limit))
            except MoesaicError as failure:
                if name == "moesaic":
                    raise
                refused[name] = failure.text
    found: Report = {name: {"refused": reason} for name, reason in refused.items()}
    for name, each in answers.items():
        if name not in refused:
            rates = [_against_limits(answer) if name == "moesaic" else rates_of(answer) for answer in each]
            found[name] = {key: _middle([rate[key] for rate in rates]) for key in rates[0]}
            peaks = [answer.peak_bytes for answer in each if answer.peak_bytes is not None]
            found[name] |= {"peak": format_bytes(max(peaks))} if peaks else {}
    return found


def _middle(values: list[Any]) -> Any:
    return statistics.median(values) if isinstance(values[0], float) else values[-1]


def _against_limits(answer: Answer) -> Report:
    """Return the rates of ours, and what of the limit 1 / max(A / B_mem, m X / B_disk) the steps after the first reach.

    m X is what the experts take that were not there when their router had spoken, of all sequences together.
    """
    values, rates = answer.values, rates_of(answer)
    before, after = values["stats"][1:3]
    steps, step_s = len(values["steps_s"][0]), rates["mean_step_s"]
    hits, misses = (after[key] - before[key] for key in ("hits", "misses"))
    sizes, disk = values["sizes"], statistics.fmean(values["disk_gb_per_s"])
    memory_s = sizes["memory_bytes_per_token"] / 1e9 / values["memory_gb_per_s"]
    disk_s = misses / max(1, steps) * sizes["stored_page_bytes"] / 1e9 / disk
    limit_s = max(memory_s, disk_s)
    return {
        **rates,
        "hit_rate": round(hits / max(1, hits + misses), 4),
        "misses_per_step": round(misses / max(1, steps), 1),
        "slots": after["slots"],
        "stall_s": round(after["stall_seconds"] - before["stall_seconds"], 3),
        "gb_read": round((after["bytes_read"] - before["bytes_read"]) / 1e9, 3),
        "guesses": [after["guesses_right"], after["guesses_wrong"]],
        "disk_gb_per_s": round(disk, 3),
        "memory_gb_per_s": round(values["memory_gb_per_s"], 2),
        "limit_step_s": round(limit_s, 4),
        "share_of_limit": None if step_s is None else round(limit_s / step_s, 3),
    }


def _hold(found: Report, peer: str, limit: float) -> Report:
    rate = found[peer].get("tokens_per_s")
    ratio = None if rate is None else round(found["moesaic"]["tokens_per_s"] / rate, 2)
    return _target(f"moesaic / {peer}", ratio, limit)


def _target(figure: str, found: float | None, limit: float) -> Report:
    return {
        "figure": figure,
        "at": "least",
        "limit": limit,
        "found": None if found is None else round(found, 4),
        "met": found is not None and found >= limit,
    }
