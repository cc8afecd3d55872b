"""The mixture of experts in the compiled kernels, as a torch operator with its gradient."""

import ctypes

import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.hw.blocks import BLOCKS
from moesaic.ops.cpu.description import DTYPES, Described, count_rows, open_library
from moesaic.ops.cpu.library import check_status, choose_instruction_set
from moesaic.ops.permutation import Permutation


class _Gradients(ctypes.Structure):
    """`MoesaicMixtureGradients` of csrc/moesaic.h."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("out", "hidden", "weights", "gate_up", "down")]


def explain_refusal(hidden: Tensor) -> str | None:
    """Return why the compiled kernels cannot take these tensors; None where they can.

    Raises:
        ConfigError, UnsupportedError: MOESAIC_ISA names what cannot be.
    """
    if hidden.device.type != "cpu":
        return f"the compiled kernels run on cpu, the tensors are on {hidden.device.type}"
    chosen = choose_instruction_set()
    if isinstance(chosen, str):
        return chosen
    if hidden.dtype not in DTYPES:
        return f"the compiled kernels take float32 and bfloat16, not {str(hidden.dtype).removeprefix('torch.')}"
    return None


def mix_experts(
    hidden_TD: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, routing: Permutation | Tensor
) -> Tensor:
    """Mix, as `ops/mixture.py` says."""
    return _run(hidden_TD, weights.float(), gate_up, down, list_routing(routing))


def apply_experts(rows_ND: Tensor, gate_up: Tensor, down: Tensor, counts_E: Tensor) -> Tensor:
    """Apply each row's expert, as `ops/expert_mlp.py` says."""
    return _run(rows_ND, None, gate_up, down, [counts_E])


def list_routing(routing: Permutation | Tensor) -> list[Tensor]:
    """Return a routing as the operators take it: expert ids alone, or what a permutation consists of."""
    if isinstance(routing, Tensor):
        return [routing]
    return [routing.counts_E, routing.token_ids_N, routing.inverse_N, routing.starts_T]


def _run(hidden: Tensor, weights: Tensor | None, gate_up: Tensor, down: Tensor, routing: list[Tensor]) -> Tensor:
    leaves = hidden, weights, gate_up, down
    if torch.is_grad_enabled() and any(leaf is not None and leaf.requires_grad for leaf in leaves):
        return torch.ops.moesaic.mixture_with_gradient.default(*leaves, routing)[0]
    # An operator of its own: what torch does around a gradient costs a single token a tenth of its time.
    return torch.ops.moesaic.mixture.default(*leaves, routing)


def _forward(hidden: Tensor, weights: Tensor | None, gate_up: Tensor, down: Tensor, routing: list[Tensor]) -> Tensor:
    return _compute(hidden, weights, gate_up, down, routing, kept=None)


def _forward_with_gradient(
    hidden: Tensor, weights: Tensor | None, gate_up: Tensor, down: Tensor, routing: list[Tensor]
) -> tuple[Tensor, Tensor]:
    kept = BLOCKS.new_empty(_kept_shape(hidden, gate_up, routing), hidden.dtype)
    return _compute(hidden, weights, gate_up, down, routing, kept), kept


def _compute(
    hidden: Tensor,
    weights: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    routing: list[Tensor],
    kept: Tensor | None,
) -> Tensor:
    described = Described(hidden, weights, gate_up, down, routing)
    if kept is None:
        out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    else:
        out = BLOCKS.new_empty(hidden.shape, hidden.dtype)
        described.mixture.gate_up_rows = kept.data_ptr()
        scratch = _take_scratch(described)
        described.mixture.scratch = scratch.data_ptr()
    status = open_library().moesaic_mixture_forward(ctypes.byref(described.mixture), out.data_ptr())
    check_status(status, "mixing experts")
    return out


def _kept_shape(hidden: Tensor, gate_up: Tensor, routing: list[Tensor]) -> tuple[int, int]:
    """Return the shape of the products before the gating, [N, 2F], which the backward pass takes up again."""
    return count_rows(hidden, routing), gate_up.shape[1]


def _backward(
    grad_out: Tensor,
    hidden: Tensor,
    weights: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    routing: list[Tensor],
    kept: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_out = grad_out.contiguous()
    described = Described(hidden, weights, gate_up, down, routing)
    described.mixture.gate_up_rows = kept.data_ptr()
    leaves = hidden, weights, gate_up, down
    first, second, third, fourth = results = tuple(
        BLOCKS.new_empty(leaf.shape, leaf.dtype) if need and leaf is not None else hidden.new_empty(0)
        for leaf, need in zip(leaves, needed, strict=True)
    )
    scratch = _take_scratch(described)
    described.mixture.scratch = scratch.data_ptr()
    pointers = [result.data_ptr() if need else None for result, need in zip(results, needed, strict=True)]
    gradients = _Gradients(grad_out.data_ptr(), *pointers)
    status = open_library().moesaic_mixture_backward(ctypes.byref(described.mixture), ctypes.byref(gradients))
    check_status(status, "differentiating the mixture of experts")
    return first, second, third, fourth


def _take_scratch(described: Described) -> Tensor:
    """Return working memory for either pass: of one length, so that both use one block."""
    library, mixture, longest = open_library(), ctypes.byref(described.mixture), 0
    for count in (library.moesaic_mixture_forward_scratch, library.moesaic_mixture_backward_scratch):
        num_bytes = ctypes.c_int64()
        check_status(count(mixture, ctypes.byref(num_bytes)), "mixing experts")
        longest = max(longest, num_bytes.value)
    return BLOCKS.new_empty((longest,), torch.uint8)


def _fake_forward(hidden, *_):  # type: ignore[no-untyped-def]
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


def _fake_forward_with_gradient(hidden, weights, gate_up, down, routing):  # type: ignore[no-untyped-def]
    return _fake_forward(hidden), hidden.new_empty(_kept_shape(hidden, gate_up, routing))


def _fake_backward(grad_out, hidden, weights, gate_up, down, routing, kept, needed):  # type: ignore[no-untyped-def]
    leaves = hidden, weights, gate_up, down
    return tuple(
        leaf.new_empty(leaf.shape) if need and leaf is not None else hidden.new_empty(0)
        for leaf, need in zip(leaves, needed, strict=True)
    )


def _keep_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *leaves, routing = inputs
    ctx.save_for_backward(*leaves, *routing, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_out, _):  # type: ignore[no-untyped-def]
    *leaves_and_routing, kept = ctx.saved_tensors
    leaves, routing = leaves_and_routing[:4], leaves_and_routing[4:]
    needed = list(ctx.needs_input_grad[:4])
    grads = torch.ops.moesaic.mixture_backward(grad_out, *leaves, routing, kept, needed)
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), [None] * len(routing)


def _refuse_second_derivatives(ctx, *grads):  # type: ignore[no-untyped-def]
    raise UnsupportedError(
        "the mixture of experts has no second derivatives", "compute in float64, or with MOESAIC_ISA=none"
    )


# The routing: [expert ids], [counts] alone of rows that are grouped already, or [counts, token ids, inverse, starts].
_INPUTS = "Tensor hidden, Tensor? weights, Tensor gate_up, Tensor down, Tensor[] routing"
_LIBRARY = torch.library.Library("moesaic", "FRAGMENT")
_LIBRARY.define(f"mixture({_INPUTS}) -> Tensor")
_LIBRARY.define(f"mixture_with_gradient({_INPUTS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"mixture_backward(Tensor grad_out, {_INPUTS}, Tensor kept, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor)"
)
for _name, _implementation, _fake in (
    ("mixture", _forward, _fake_forward),
    ("mixture_with_gradient", _forward_with_gradient, _fake_forward_with_gradient),
    ("mixture_backward", _backward, _fake_backward),
):
    _LIBRARY.impl(_name, _implementation, "CPU")
    torch.library.register_fake(f"moesaic::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd(
    "moesaic::mixture_with_gradient", _differentiate, setup_context=_keep_context, lib=_LIBRARY
)
torch.library.register_autograd("moesaic::mixture_backward", _refuse_second_derivatives, lib=_LIBRARY)
