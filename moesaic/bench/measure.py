"""Timing that holds on a noisy machine: everything in one run, taking turns, medians."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def measure(
    candidates: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 3, pause_s: float = 0.0
) -> dict[str, list[float]]:
    """Time each candidate `repeats` times, taking turns, after `warmup` rounds; return seconds by name.

    A pause before each call lets the threads of another process, which wait in a loop for a while, go to sleep.
    """
    for _ in range(warmup):
        for run in candidates.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            time.sleep(pause_s)
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return times


def summarise(times: list[float]) -> dict[str, float]:
    """Return median and inter-quartile range in milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4)
    return {"median_ms": round(middle * 1e3, 3), "iqr_ms": round((high - low) * 1e3, 3)}


def describe_machine() -> dict[str, Any]:
    """Return what a result needs to be understood: processor, threads, versions."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "moesaic": version("moesaic"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
