"""`moesaic bench comm`: what messages cost between processes, and what is gained by sending fewer and earlier.

Each case runs in all ranks at once. Started alone, the command starts the ranks by torchrun; started by torchrun, on
one machine or on several, it is one of them.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from moesaic.bench.chunks import time_chunks, time_gradients
from moesaic.bench.embedding import SHORT, VOCABULARY, time_embedding
from moesaic.bench.measure import describe_machine
from moesaic.bench.messages import SMALL_BYTES, fit_messages, time_all_to_all, time_buckets
from moesaic.bench.target import hold
from moesaic.comm.failure import name_rank
from moesaic.comm.mesh import Mesh, build_mesh
from moesaic.comm.world import join_world
from moesaic.errors import MoesaicError
from moesaic.hw.allocator import keep_freed_memory

_TIMEOUT_S = 300
# Ranks of one machine that show how the cost of a message grows.
GROWTH = (1, 2, 4, 8)
# What is aimed at: flat over hierarchical for small messages, whole over chunks, and chosen over best degree.
_HIERARCHICAL, _CHUNKS, _CHOSEN = 1.3, 1.2, 1.1

CASES: dict[str, Callable[[Mesh, int], Any]] = {
    "all_to_all": time_all_to_all,
    "buckets": lambda mesh, repeats: time_buckets(mesh.everyone, repeats),
    "chunks": time_chunks,
    "gradients": time_gradients,
    # Over a slow link sums of so large a gradient take minutes.
    "embedding": lambda mesh, repeats: time_embedding(mesh, repeats, VOCABULARY if mesh.nodes is None else SHORT),
    "fits": lambda mesh, _: fit_messages(mesh),
}


@dataclass(frozen=True)
class Asked:
    """What is to be measured.

    Attributes:
        ranks: processes to start.
        repeats: of each measurement.
        cases: names of `CASES`.
    """

    ranks: int
    repeats: int
    cases: tuple[str, ...]


def is_rank() -> bool:
    """Tell whether torchrun has started this process."""
    return "WORLD_SIZE" in os.environ


def bench_comm(asked: Asked, report: Callable[[str], None]) -> dict[str, Any]:
    """Start ranks on this machine and return what they measure; fits also for other numbers of them.

    Args:
        asked: what to measure.
        report: is told what is being measured.

    Raises:
        MoesaicError: a rank failed.
    """
    report(f"{asked.ranks} ranks: {', '.join(asked.cases)}")
    result = _start(asked)
    if "fits" in asked.cases:
        grown = {}
        for ranks in GROWTH:
            report(f"{ranks} ranks: fits")
            grown[ranks] = _start(Asked(ranks, asked.repeats, ("fits",)))["cases"]["fits"]
        result["cases"]["growth"] = grown
    return result


def bench_rank(asked: Asked, report: Callable[[str], None]) -> dict[str, Any] | None:
    """Measure as one of the ranks that torchrun has started; return the result in the first of them.

    Raises:
        ParallelError: another rank ended.
    """
    keep_freed_memory()
    with join_world(_TIMEOUT_S) as world, name_rank(world):
        alone = world.size == 1
        if alone:  # nobody to meet, but the same calls
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            mesh = build_mesh(world.size, 1, world.size, world.num_here, timeout_s=_TIMEOUT_S)
            cases = {}
            for name in asked.cases:
                report(name)
                cases[name] = CASES[name](mesh, asked.repeats)
        finally:
            if alone:
                dist.destroy_process_group()
    machine = {**describe_machine(), "ranks": world.size, "nodes": world.size // world.num_here}
    result = {"benchmark": "comm", "machine": machine, "repeats": asked.repeats, "cases": cases}
    return {**result, "targets": check_targets(cases)} if world.is_first else None


def check_targets(cases: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold what was measured against what is aimed at; what could not be is not met."""
    targets = []
    if "all_to_all" in cases:
        small = [row["ms"] for row in cases["all_to_all"] if row["bytes_a_pair"] <= SMALL_BYTES]
        ratios = [each["flat"] / each["hierarchical"] for each in small if "hierarchical" in each]
        mean = statistics.geometric_mean(ratios) if ratios else None
        figure = f"flat / hierarchical, geometric mean up to {SMALL_BYTES} bytes"
        targets.append(hold(figure, "least", _HIERARCHICAL, mean))
    if "chunks" in cases:
        times, chosen, best = (cases["chunks"][key] for key in ("ms", "chosen", "best"))
        targets.append(hold("whole / chosen chunks", "least", _CHUNKS, times["1"] / times[str(chosen)]))
        targets.append(hold("chosen / best chunks", "most", _CHOSEN, times[str(chosen)] / times[str(best)]))
    return targets


def _start(asked: Asked) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        cases = [word for name in asked.cases for word in ("--case", name)]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(asked.ranks)]
        command = [*launcher, "-m", "moesaic", "bench", "comm", "--repeats", str(asked.repeats), "--out", str(out)]
        done = subprocess.run(
            [*command, *cases],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=2 * _TIMEOUT_S,
            check=False,
        )
        if done.returncode == 0 and out.is_file():
            return json.loads(out.read_text())
    told = [line for line in done.stderr.splitlines() if "rror" in line] or [f"status {done.returncode}"]
    raise MoesaicError(f"the ranks of the benchmark ended: {told[0].strip()}", "start it by torchrun to see all of it")
