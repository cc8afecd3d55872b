"""One rank of DeepSpeed-MoE: a script for torchrun, run by the Python of another environment, which has no moesaic.

    ranks_deepspeed_worker.py REQUEST

takes and gives what `ranks_moesaic_worker.py` does. `drop` of the request limits experts to 1.25 times the mean load.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

CAPACITY_FACTOR = 1.25


def main() -> None:
    """Measure as asked."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed logs to standard output
    import deepspeed
    import torch
    import torch.distributed as dist
    from deepspeed.moe.layer import MoE
    from safetensors import safe_open
    from torch import nn
    from torch.nn import functional

    class Expert(nn.Module):
        """A gated MLP with one product for gate and up, as ours has it."""

        def __init__(self) -> None:
            super().__init__()
            self.gate_up = nn.Parameter(torch.empty(0))
            self.down = nn.Parameter(torch.empty(0))

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            gate, up = functional.linear(rows, self.gate_up).chunk(2, dim=-1)
            return functional.linear(functional.silu(gate) * up, self.down)

    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    before = _held_bytes("VmRSS")
    with safe_open(request["tensors"], "pt") as tensors:
        num_experts, width, _ = tensors.get_slice("down").get_shape()
        layer = MoE(
            hidden_size=width,
            expert=Expert(),
            num_experts=num_experts,
            ep_size=size,
            k=request["chosen"],
            drop_tokens=request["drop"],
            capacity_factor=CAPACITY_FACTOR,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        layer.set_deepspeed_parallelism()
        share = num_experts // size
        for index, expert in enumerate(layer.deepspeed_moe.experts.deepspeed_experts):
            expert.gate_up = nn.Parameter(tensors.get_slice("gate_up")[rank * share + index])
            expert.down = nn.Parameter(tensors.get_slice("down")[rank * share + index])
        layer.deepspeed_moe.gate.wg.weight = nn.Parameter(tensors.get_tensor("router").float())
        hidden_TD = tensors.get_tensor(f"hidden.{rank}").requires_grad_()
        grad_TD = tensors.get_tensor(f"grad.{rank}")

    def step() -> torch.Tensor:
        layer.zero_grad(set_to_none=True)
        hidden_TD.grad = None
        result_TD, balance, _ = layer(hidden_TD.unsqueeze(0))
        ((result_TD[0] * grad_TD).sum() + 0.01 * balance).backward()
        return result_TD[0]

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
            "version": deepspeed.__version__,
            "seconds": seconds[request["warmup"] :],
            "peak_bytes": int(peak),
            "result": result_TD[:: request["every"]].float().tolist(),
        }
        print(json.dumps(answer), file=replies, flush=True)
    dist.destroy_process_group()


def _held_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    main()
