"""Check and time the GPU path in one go: `python benchmarks/gpu.py` on a machine with a CUDA device.

First every kernel against its oracle, in each dtype; then the mixture of experts, forward and with its backward,
against a dense gated MLP of equal FLOPs and transformers' experts (`grouped_mm`), and each kernel against what torch
has for the same; beside them the memory bandwidth and the matrix rate that the device reached in the same run.
Candidates take turns; times are medians between CUDA events and include gaps in which the device waits for launches.

Writes benchmarks/results/gpu_DEVICE_YYYY-MM.json, prints one JSON line last. Exit codes: 0 done; 1 a kernel is
wrong; 2 no device. `--interpret` checks on the CPU, in triton's interpreter, and times nothing.
"""

import argparse
import json
import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from moesaic.bench.measure import describe_machine
from moesaic.errors import EXIT_DONE, EXIT_OURS, EXIT_USER
from moesaic.ops.gpu.refusal import HAS_TRITON

RESULTS = Path(__file__).parent / "results"


def describe_device() -> dict[str, Any]:
    """Return what a result needs to be understood, and what is not installed as null."""
    versions = {}
    for name in ("triton", "transformers"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = None
    found: dict[str, Any] = {**describe_machine(), **versions}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return found


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="where to write the result")
    parser.add_argument("--repeats", type=int, default=20, help="timed rounds of each candidate")
    parser.add_argument("--interpret", action="store_true", help="only check, on the CPU, in triton's interpreter")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("--repeats must be at least 2")
    interprets = arguments.interpret or os.environ.get("TRITON_INTERPRET") == "1"
    if not HAS_TRITON or not (interprets or torch.cuda.is_available()):
        missing = "no CUDA device" if HAS_TRITON else "triton is not installed"
        hint = "run it where torch sees a GPU, or with --interpret" if HAS_TRITON else "pip install triton"
        print(f"error: cannot check the kernels: {missing}\n hint: {hint}", file=sys.stderr)
        return EXIT_USER
    if interprets:
        os.environ["TRITON_INTERPRET"] = "1"
    return run_all(interprets, arguments.repeats, arguments.out)


def run_all(interprets: bool, repeats: int, out: Path | None) -> int:
    """Check, time where there is a device, write the result where there is one."""
    # They import triton, which reads its switch then.
    from gpu_check import CHECKED, CHECKED_INTERPRETED, check_all

    machine = describe_device()
    print(json.dumps(machine, indent=1), file=sys.stderr)
    checks, wrong = check_all(CHECKED_INTERPRETED if interprets else CHECKED, "cpu" if interprets else "cuda")
    if wrong:
        print(f"error: {len(wrong)} of {len(checks)} checks of the kernels failed", *wrong, sep="\n", file=sys.stderr)
        return EXIT_OURS
    print(f"{len(checks)} checks passed", file=sys.stderr)
    result: dict[str, Any] = {"benchmark": "gpu", "machine": machine, "repeats": repeats, "checks": checks}
    summary: dict[str, Any] = {"benchmark": "gpu", "checks": len(checks)}
    if not interprets:
        from gpu_time import time_all

        timed = time_all(repeats)
        result |= timed
        summary |= timed["peaks"]
        name = machine["device"].lower().replace(" ", "-")
        out = out or RESULTS / f"gpu_{name}_{date.today():%Y-%m}.json"
    if out is not None:
        write_result(out, result)
        summary["result"] = str(out)
    print(json.dumps(summary))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
