"""DeepSpeed-MoE in a process of its own: a script, run by the Python of another environment, which has no moesaic.

It reads a JSON object a line and answers each with one: `{"load": FILE, "k": K, "capacity_factor": C,
"save": FILE}` builds the layer on the tensors of a safetensors file and saves the result and the gradient of the tokens
with nothing dropped; `{"step": true}` runs forward and backward once, within the capacity.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

# So far below the chosen ones that softmax gives the rest nothing.
_NEVER = -60.0


def main() -> None:
    """Answer until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # DeepSpeed logs to standard output
    import deepspeed
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    step: Callable[[], object] | None = None
    answer: dict[str, Any] = {"deepspeed": deepspeed.__version__, "torch": torch.__version__}
    while True:
        print(json.dumps(answer), file=replies, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        request = json.loads(line)
        if "load" in request:
            step = None  # its weights go before the next ones come
            step = _build_step(**request)
        else:
            assert step is not None, "a step comes after a load"
            step()
        answer = {"done": True}


def _build_step(load: str, k: int, capacity_factor: float, save: str) -> Callable[[], object]:
    import torch
    from deepspeed.moe.experts import Experts
    from deepspeed.moe.sharded_moe import MOELayer, TopKGate
    from safetensors.torch import load_file, save_file
    from torch import nn
    from torch.nn import functional

    class Expert(nn.Module):
        """A gated MLP with one product for gate and up, as ours and transformers' have it."""

        gate_up: nn.Parameter
        down: nn.Parameter

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            gate, up = functional.linear(rows, self.gate_up).chunk(2, dim=-1)
            return functional.linear(functional.silu(gate) * up, self.down)

    class GivenGate(TopKGate):
        """DeepSpeed's gate, whose logits are given: they come as tokens, and its weights are the identity."""

        def forward(self, tokens: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            return super().forward(logits, *arguments, **options)

    tensors = load_file(load)
    tokens, num_experts = tensors["hidden"].requires_grad_(), len(tensors["down"])
    logits = torch.full((len(tokens), num_experts), _NEVER)
    logits = logits.scatter(1, tensors["expert_ids"], tensors["weights"].float().log()).requires_grad_()
    gate = GivenGate(
        num_experts, num_experts, k, capacity_factor, drop_tokens=False, use_rts=False, top2_2nd_expert_sampling=False
    )
    gate.wg.weight = nn.Parameter(torch.eye(num_experts), requires_grad=False)
    experts = Experts(Expert(), num_experts, "ep_size_1")
    for index, expert in enumerate(experts.deepspeed_experts):
        expert.gate_up, expert.down = nn.Parameter(tensors["gate_up"][index]), nn.Parameter(tensors["down"][index])
    layer = MOELayer(gate, experts, "ep_size_1", 1, num_experts)
    leaves = (tokens, logits, *experts.parameters())

    def step() -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        result = layer(tokens, None)
        return result, torch.autograd.grad(result, leaves, tensors["grad"])

    result, gradients = step()
    save_file({"result": result.detach(), "grad_hidden": gradients[0]}, save)
    gate.drop_tokens = True
    return step


if __name__ == "__main__":
    main()
