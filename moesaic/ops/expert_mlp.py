"""The gated MLP of every expert over its own rows: down(silu(gate(x)) * up(x)).

Rows come grouped by expert. On CPU the compiled kernels do it; where there are none, each expert is two matrix products
straight into the shared results, with the gating between; the backward keeps only the input and the gate-up product and
redoes the gating.
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
    return _ExpertLoop.apply(rows_ND, gate_up, down, list_counts(counts_E, len(rows_ND)))


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


def list_counts(counts_E: Tensor, num_rows: int) -> list[int]:
    """Return the rows of each expert as numbers.

    Raises:
        UnsupportedError: they are not those of `num_rows` rows.
    """
    counts = counts_E.tolist()
    if min(counts, default=0) < 0 or sum(counts) != num_rows:
        raise UnsupportedError(f"counts_E does not fit the {num_rows} rows", "make it with group_by_expert")
    return counts


def list_runs(counts: list[int]) -> list[tuple[int, slice]]:
    """List the experts that have rows, and which."""
    runs, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            runs.append((expert, slice(start, start + count)))
        start += count
    return runs


def apply_expert(rows_ND: Tensor, gate_up: Tensor, down: Tensor, hidden_N2F: Tensor, out_ND: Tensor) -> None:
    """Apply one expert to its rows.

    They are gated by themselves: the last bits of torch's silu depend on where it cuts its work among threads, so what
    is gated together would show, and an expert gives the same bits alone and among others.

    Args:
        rows_ND: [N, D].
        gate_up, down: [2F, D] and [D, F].
        hidden_N2F: where the products with gate_up go.
        out_ND: where the result goes.
    """
    width = down.shape[1]
    torch.mm(rows_ND, gate_up.t(), out=hidden_N2F)
    torch.mm(functional.silu(hidden_N2F[:, :width]).mul_(hidden_N2F[:, width:]), down.t(), out=out_ND)


class _ExpertLoop(torch.autograd.Function):
    """One pass over the experts, each a slice of rows; backward, the gating is done for all rows at once."""

    @staticmethod
    def forward(ctx, rows_ND, gate_up, down, counts):  # type: ignore[no-untyped-def]
        hidden_N2F = rows_ND.new_empty(len(rows_ND), gate_up.shape[1])
        out_ND = rows_ND.new_empty(len(rows_ND), down.shape[1])
        for expert, run in list_runs(counts):
            apply_expert(rows_ND[run], gate_up[expert], down[expert], hidden_N2F[run], out_ND[run])
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
        for expert, run in list_runs(ctx.counts):
            torch.mm(grad_out_ND[run], down[expert], out=grad_gated_NF[run])
            torch.mm(grad_out_ND[run].t(), gated_NF[run], out=grad_down[expert])

        grad_hidden_N2F = torch.empty_like(hidden_N2F)
        torch.mul(grad_gated_NF, activated_NF, out=grad_hidden_N2F[:, width:])
        grad_gated_NF.mul_(up_NF)
        grad_hidden_N2F[:, :width] = torch.ops.aten.silu_backward(grad_gated_NF, gate_NF)

        grad_rows_ND = torch.empty_like(rows_ND)
        grad_gate_up = torch.empty_like(gate_up)
        for expert, run in list_runs(ctx.counts):
            torch.mm(grad_hidden_N2F[run], gate_up[expert], out=grad_rows_ND[run])
            torch.mm(grad_hidden_N2F[run].t(), rows_ND[run], out=grad_gate_up[expert])
        for expert, count in enumerate(ctx.counts):
            if count == 0:
                grad_down[expert].zero_()
                grad_gate_up[expert].zero_()
        return grad_rows_ND, grad_gate_up, grad_down, None
