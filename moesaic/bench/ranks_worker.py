"""One rank of a program: a script for torchrun, which needs torch and safetensors alone, to run in any environment.

    ranks_worker.py REQUEST

REQUEST is a file with one JSON object, and rank 0 answers with one:

    {"program": FILE, "way": ..., "tensors": FILE, "chosen": K, "layers": L, "warmup": N, "steps": N, "every": N}
    {"version": ..., "seconds": [...], "peak_bytes": ..., "result": [...]}

The program is a Python file with two functions: `connect()` brings the ranks together and returns its version, and
`build(tensors, request, rank, size)` returns a step, a function that computes forward and backward and returns what is
to be compared, rows of numbers. `peak_bytes` is the most that a rank held during the steps beyond what it held before
it had weights; `result` is every so manieth row of rank 0.

The tensors are a safetensors file. Of a layer (L = 0): router [E, D], gate_up [E, 2F, D], down [E, D, F], and of each
rank its tokens hidden.R [T, D] and the gradient of what comes out, grad.R. Of a language model with L layers: its
weights by their names in `moesaic.models.model`, and of each rank ids.R and labels.R [B, S].
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open


class Tensors:
    """The tensors of a file, each in memory of its own: what is mapped stays while any of them is used."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def shape(self, name: str) -> list[int]:
        """Return a tensor's shape."""
        return self._file.get_slice(name).get_shape()

    def read(self, name: str, part: int | slice = slice(None)) -> torch.Tensor:
        """Return a tensor, or some of its items."""
        return self._file.get_slice(name)[part].clone()


def main() -> None:
    """Measure as asked."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed logs to standard output
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    program = runpy.run_path(request["program"])
    torch.set_num_threads(1)
    version = program["connect"]()
    before = _held_bytes("VmRSS")
    with safe_open(request["tensors"], "pt") as file:
        step = program["build"](Tensors(file), request, dist.get_rank(), dist.get_world_size())
    result = step()
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(request["warmup"] + request["steps"]):
        dist.barrier()
        began = time.perf_counter()
        step()
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    peak = torch.tensor(_held_bytes("VmHWM") - before)
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        answer = {
            "version": version,
            "seconds": seconds[request["warmup"] :],
            "peak_bytes": int(peak),
            "result": result[:: request["every"]].float().tolist(),
        }
        print(json.dumps(answer), file=replies, flush=True)
    dist.destroy_process_group()


def _held_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    main()
