"""One rank of ours: a script for torchrun.

    ranks_moesaic_worker.py REQUEST

REQUEST is a file with one JSON object, and rank 0 answers with one:

    {"tensors": FILE, "chosen": K, "warmup": N, "steps": N, "every": N, "drop": BOOLEAN}
    {"version": ..., "seconds": [...], "peak_bytes": ..., "result": [...]}

FILE is a safetensors file: router [E, D], gate_up [E, 2F, D], down [E, D, F], and of each rank its tokens hidden.R
[T, D] and the gradient of what comes out, grad.R. A step is forward and backward; `peak_bytes` is the most that a rank
held during the steps beyond what it held before it had a layer; `result` what comes out for every so many of rank 0's
tokens. Nothing is dropped by ours, whatever `drop` says.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

import moesaic
from moesaic.comm.all_to_all import FlatAllToAll
from moesaic.config.model import ModelConfig
from moesaic.hw.allocator import keep_freed_memory
from moesaic.nn.moe.layer import MoELayer
from moesaic.parallel.batch import SharedBatch
from moesaic.parallel.expert import AllToAllDispatcher


def main() -> None:
    """Measure as asked."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    keep_freed_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    assert group is not None, "the ranks have met"
    before = _held_bytes("VmRSS")
    with safe_open(request["tensors"], "pt") as tensors:
        num_experts, width, expert_width = tensors.get_slice("down").get_shape()
        config = ModelConfig(
            model_type="mixtral",
            vocab_size=1,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=expert_width,
            num_experts=num_experts,
            num_experts_per_tok=request["chosen"],
        )
        with torch.device("meta"):
            layer = MoELayer(config)
        share = num_experts // size
        own = slice(rank * share, (rank + 1) * share)
        layer.experts.gate_up = nn.Parameter(tensors.get_slice("gate_up")[own])
        layer.experts.down = nn.Parameter(tensors.get_slice("down")[own])
        layer.router.weight = nn.Parameter(tensors.get_tensor("router").float())
        hidden_TD = tensors.get_tensor(f"hidden.{rank}").requires_grad_()
        grad_TD = tensors.get_tensor(f"grad.{rank}")
    layer.dispatcher, layer.batch = AllToAllDispatcher(FlatAllToAll(group)), SharedBatch(group)

    def step() -> Tensor:
        layer.zero_grad(set_to_none=True)
        hidden_TD.grad = None
        output = layer(hidden_TD.unsqueeze(0))
        ((output.hidden_BSD[0] * grad_TD).sum() + 0.01 * output.losses["balance_loss"]).backward()
        return output.hidden_BSD[0]

    result_TD = step()
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
    if rank == 0:
        answer = {
            "version": moesaic.__version__,
            "seconds": seconds[request["warmup"] :],
            "peak_bytes": int(peak),
            "result": result_TD[:: request["every"]].float().tolist(),
        }
        print(json.dumps(answer), flush=True)
    dist.destroy_process_group()


def _held_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    main()
