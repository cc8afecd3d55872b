"""The gated MLP of every expert over its own rows: down(silu(gate(x)) * up(x)).

Rows come grouped by expert. On CPU the compiled kernels do it; where there are none, each expert is three matrix
products straight into the shared result, and the gating runs once over all rows; the backward keeps only the input
and the gate-up product and redoes the gating. On CUDA torch's grouped products need no
expert counts on the host.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.errors import UnsupportedError
from moesaic.ops.backend import choose_backend, load_gpu_module
from moesaic.ops.cpu import mixture as compiled
from moesaic.ops.tensor import check_tensor

Weights = tuple[Tensor, Tensor]


def expert_mlp(rows_ND: Tensor, gate_up: Tensor, down: Tensor, counts_E: Tensor) -> Tensor:
    """Apply expert e to the e-th run of counts_E[e] rows.

    Args:
        rows_ND: [N, D] of any floating dtype, grouped by expert.
        gate_up: [E, 2F, D] of the same dtype: gate rows, then up rows.
        down: [E, D, F].
        counts_E: int64 with sum N; zeros are fine.

    Returns:
        [N, D]. Memory: N (4F + D) elements, of which N (2F) live until the backward pass.

    Raises:
        UnsupportedError: a tensor has another shape, dtype or device, or counts_E does not sum to N.
    """
    check_expert_mlp("rows_ND", rows_ND, gate_up, down)
    check_tensor("counts_E", counts_E, (len(gate_up),), torch.int64, rows_ND.device)
    backend = choose_backend("expert_mlp", rows_ND, gate_up, down)
    if backend == "compiled":
        return compiled.apply_experts(rows_ND, gate_up, down, counts_E)
    if backend == "triton":
        return load_gpu_module("mixture").expert_mlp(rows_ND, gate_up, down, counts_E)
    counts = counts_E.tolist()
    if min(counts, default=0) < 0 or sum(counts) != len(rows_ND):
        raise UnsupportedError(f"counts_E does not fit the {len(rows_ND)} rows", "make it with group_by_expert")
    return _ExpertLoop.apply(rows_ND, gate_up, down, counts)


def check_expert_mlp(name: str, rows_ND: Tensor, gate_up: Tensor, down: Tensor) -> None:
    """Check rows, called `name` by the caller, and weights against each other.

    Raises:
        UnsupportedError: a shape, dtype or device is another.
    """
    if not rows_ND.is_floating_point():
        raise UnsupportedError(f"{name} holds {rows_ND.dtype}", "give it in a floating dtype")
    check_tensor(name, rows_ND, (None, None))
    check_tensor("down", down, (None, rows_ND.shape[1], None), rows_ND.dtype, rows_ND.device)
    num_experts, width, hidden_width = down.shape
    check_tensor("gate_up", gate_up, (num_experts, 2 * hidden_width, width), rows_ND.dtype, rows_ND.device)


class _ExpertLoop(torch.autograd.Function):
    """One pass over the experts, each a slice of rows; the gating is done for all rows at once."""

    @staticmethod
    def forward(ctx, rows_ND, gate_up, down, counts):  # type: ignore[no-untyped-def]
        width = down.shape[2]
        hidden_N2F = rows_ND.new_empty(len(rows_ND), 2 * width)
        out_ND = rows_ND.new_empty(len(rows_ND), down.shape[1])
        for expert, start, end in _runs(counts):
            torch.mm(rows_ND[start:end], gate_up[expert].t(), out=hidden_N2F[start:end])
        gated_NF = functional.silu(hidden_N2F[:, :width]).mul_(hidden_N2F[:, width:])
        for expert, start, end in _runs(counts):
            torch.mm(gated_NF[start:end], down[expert].t(), out=out_ND[start:end])
        ctx.save_for_backward(rows_ND, gate_up, down, hidden_N2F)
        ctx.counts = counts
        return out_ND

    @staticmethod
    def backward(ctx, grad_out_ND):  # type: ignore[no-untyped-def]
        rows_ND, gate_up, down, hidden_N2F = ctx.saved_tensors
        width, grad_out_ND = down.shape[2], grad_out_ND.contiguous()
        gate_NF, up_NF = hidden_N2F[:, :width], hidden_N2F[:, width:]
        activated_NF = functional.silu(gate_NF)
        gated_NF = activated_NF * up_NF

        grad_down = torch.empty_like(down)
        grad_gated_NF = torch.empty_like(gated_NF)
        for expert, start, end in _runs(ctx.counts):
            torch.mm(grad_out_ND[start:end], down[expert], out=grad_gated_NF[start:end])
            torch.mm(grad_out_ND[start:end].t(), gated_NF[start:end], out=grad_down[expert])

        grad_hidden_N2F = torch.empty_like(hidden_N2F)
        torch.mul(grad_gated_NF, activated_NF, out=grad_hidden_N2F[:, width:])
        grad_gated_NF.mul_(up_NF)
        grad_hidden_N2F[:, :width] = torch.ops.aten.silu_backward(grad_gated_NF, gate_NF)

        grad_rows_ND = torch.empty_like(rows_ND)
        grad_gate_up = torch.empty_like(gate_up)
        for expert, start, end in _runs(ctx.counts):
            torch.mm(grad_hidden_N2F[start:end], gate_up[expert], out=grad_rows_ND[start:end])
            torch.mm(grad_hidden_N2F[start:end].t(), rows_ND[start:end], out=grad_gate_up[expert])
        for expert, count in enumerate(ctx.counts):
            if count == 0:
                grad_down[expert].zero_()
                grad_gate_up[expert].zero_()
        return grad_rows_ND, grad_gate_up, grad_down, None


def _runs(counts: list[int]) -> list[tuple[int, int, int]]:
    """List (expert, start, end) of the experts that have rows."""
    runs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            runs.append((expert, start, start + count))
        start += count
    return runs
