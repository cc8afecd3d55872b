"""Timing: candidates take turns, and figures are those worked out by hand."""

import pytest
import torch

from moesaic.bench import measure as room
from moesaic.bench.measure import describe_machine, measure, summarise


def test_candidates_take_turns_after_the_warmup_when_measured() -> None:
    calls: list[str] = []
    times = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}


def test_times_are_those_of_the_clock_around_each_call_when_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def spend(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(room.time, "perf_counter", lambda: now[0])
    costs = iter([9.0, 9.0, 1.0, 10.0, 2.0, 20.0])
    times = measure({"a": lambda: spend(next(costs)), "b": lambda: spend(next(costs))}, repeats=2, warmup=1)
    assert times == {"a": [1.0, 2.0], "b": [10.0, 20.0]}


def test_median_and_quartiles_are_in_milliseconds_when_summarised() -> None:
    # Quartiles of 1..7 (exclusive method): 2, 4 and 6.
    assert summarise([0.007, 0.001, 0.004, 0.002, 0.006, 0.003, 0.005]) == {"median_ms": 4.0, "iqr_ms": 4.0}


def test_machine_tells_processor_threads_and_versions_when_described() -> None:
    machine = describe_machine()
    assert machine["torch"] == torch.__version__
    assert machine["threads"] == torch.get_num_threads()
    assert all(machine[key] for key in ("processor", "cpu_capability", "python", "moesaic"))


def test_processor_is_named_when_the_system_tells_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.Path, "is_file", lambda path: False)
    assert describe_machine()["processor"]
