"""The mixture of experts in the compiled kernels, as a torch operator with its gradient."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.cpu.library import InstructionSet, check_status, choose_instruction_set, load_library

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_ALIGNMENT = 64


class Mixture(ctypes.Structure):
    """`MoesaicMixture` of csrc/moesaic.h."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("isa", "dtype", "num_threads")],
        *[(name, ctypes.c_int64) for name in ("num_tokens", "num_rows", "width", "hidden_width", "num_experts")],
        *[(name, ctypes.c_void_p) for name in ("counts", "token_ids", "inverse", "starts", "weights")],
        *[(name, ctypes.c_void_p) for name in ("hidden", "gate_up", "down", "gate_up_rows", "scratch")],
    ]


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
    if hidden.dtype not in _DTYPES:
        return f"the compiled kernels take float32 and bfloat16, not {str(hidden.dtype).removeprefix('torch.')}"
    return None


def mix_experts(
    hidden_TD: Tensor,
    weights_N: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    counts_E: Tensor,
    token_ids_N: Tensor | None = None,
    inverse_N: Tensor | None = None,
    starts_T: Tensor | None = None,
) -> Tensor:
    """Mix, as `ops/mixture.py` says; without the last three, apply each row's expert, as `ops/expert_mlp.py`."""
    needs_gradient = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden_TD, weights_N, gate_up, down)
    )
    weights_N = None if weights_N is None else weights_N.float()
    routing = (counts_E, token_ids_N, inverse_N, starts_T)
    return torch.ops.moesaic.mixture(hidden_TD, weights_N, gate_up, down, *routing, needs_gradient)[0]


def _forward(
    hidden: Tensor,
    weights: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    counts: Tensor,
    token_ids: Tensor | None,
    inverse: Tensor | None,
    starts: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    num_rows = len(hidden) if token_ids is None else len(token_ids)
    kept = hidden.new_empty((num_rows, gate_up.shape[1]) if keep else (0,))
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    inputs = contiguous(hidden, weights, gate_up, down, counts, token_ids, inverse, starts)
    mixture = describe(*inputs)
    if keep:
        mixture.gate_up_rows = kept.data_ptr()
    library = open_library()
    scratch = take_scratch(mixture, library.moesaic_mixture_forward_scratch)  # lives until the kernel is done
    assert len(scratch), "named, so that it lives"
    check_status(library.moesaic_mixture_forward(ctypes.byref(mixture), out.data_ptr()), "mixing experts")
    return out, kept


def _backward(
    grad_out: Tensor,
    hidden: Tensor,
    weights: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    counts: Tensor,
    token_ids: Tensor | None,
    inverse: Tensor | None,
    starts: Tensor | None,
    kept: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_out = grad_out.contiguous()
    inputs = contiguous(hidden, weights, gate_up, down, counts, token_ids, inverse, starts)
    mixture = describe(*inputs)
    mixture.gate_up_rows = kept.data_ptr()
    results = [
        torch.empty_like(tensor) if need and tensor is not None else hidden.new_empty(0)
        for tensor, need in zip(inputs[:4], needed, strict=True)
    ]
    pointers = [result.data_ptr() if need else None for result, need in zip(results, needed, strict=True)]
    gradients = _Gradients(grad_out.data_ptr(), *pointers)
    library = open_library()
    scratch = take_scratch(mixture, library.moesaic_mixture_backward_scratch)
    assert len(scratch), "named, so that it lives"
    status = library.moesaic_mixture_backward(ctypes.byref(mixture), ctypes.byref(gradients))
    check_status(status, "differentiating the mixture of experts")
    return results[0], results[1], results[2], results[3]


def contiguous(*tensors: Tensor | None) -> list[Any]:
    """Return the tensors as the kernels read them; the caller keeps them alive."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _address(tensor: Tensor | None) -> int | None:
    """Return where a tensor lies: an empty one, which lies nowhere, anywhere, for a null means that there is none."""
    return None if tensor is None else tensor.data_ptr() or _ALIGNMENT


def describe(
    hidden: Tensor,
    weights: Tensor | None,
    gate_up: Tensor,
    down: Tensor,
    counts: Tensor,
    token_ids: Tensor | None,
    inverse: Tensor | None,
    starts: Tensor | None,
) -> Mixture:
    """Describe tensors that are contiguous; they must outlive it."""
    chosen = choose_instruction_set()
    assert isinstance(chosen, InstructionSet), "the caller asked explain_refusal"
    num_rows = len(hidden) if token_ids is None else len(token_ids)
    routing = [_address(tensor) for tensor in (token_ids, inverse, starts, weights)]
    matrices = hidden.data_ptr(), gate_up.data_ptr(), down.data_ptr()
    sizes = len(hidden), num_rows, hidden.shape[1], down.shape[2], len(counts)
    options = chosen.number, _DTYPES[hidden.dtype], torch.get_num_threads()
    return Mixture(*options, *sizes, counts.data_ptr(), *routing, *matrices)


def take_scratch(mixture: Mixture, ask: Callable[..., int]) -> Tensor:
    """Give the kernel the memory that it asks for; return it to be kept alive."""
    num_bytes = ctypes.c_int64()
    check_status(ask(ctypes.byref(mixture), ctypes.byref(num_bytes)), "sizing the scratch memory")
    scratch = torch.empty(num_bytes.value + _ALIGNMENT, dtype=torch.uint8)
    mixture.scratch = scratch.data_ptr() + -scratch.data_ptr() % _ALIGNMENT
    return scratch


def open_library() -> ctypes.CDLL:
    """Return the library, where explain_refusal has found one."""
    library = load_library()
    assert library is not None, "the caller asked explain_refusal"
    return library


def _fake_forward(hidden, weights, gate_up, down, counts, token_ids, inverse, starts, keep):  # type: ignore[no-untyped-def]
    num_rows = len(hidden) if token_ids is None else len(token_ids)
    kept = hidden.new_empty((num_rows, gate_up.shape[1]) if keep else (0,))
    return torch.empty_like(hidden, memory_format=torch.contiguous_format), kept


def _fake_backward(  # type: ignore[no-untyped-def]
    grad_out, hidden, weights, gate_up, down, counts, token_ids, inverse, starts, kept, needed
):
    tensors = zip((hidden, weights, gate_up, down), needed, strict=True)
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if need and tensor is not None
        else hidden.new_empty(0)
        for tensor, need in tensors
    )


def _keep_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:8], output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_out, _):  # type: ignore[no-untyped-def]
    *inputs, kept = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:4])
    grads = torch.ops.moesaic.mixture_backward(grad_out, *inputs, kept, needed)
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), None, None, None, None, None


def _refuse_second_derivatives(ctx, *grads):  # type: ignore[no-untyped-def]
    raise UnsupportedError(
        "the mixture of experts has no second derivatives", "compute in float64, or with MOESAIC_ISA=none"
    )


_LIBRARY = torch.library.Library("moesaic", "FRAGMENT")
_LIBRARY.define(
    "mixture(Tensor hidden, Tensor? weights, Tensor gate_up, Tensor down, Tensor counts, Tensor? token_ids, "
    "Tensor? inverse, Tensor? starts, bool keep) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "mixture_backward(Tensor grad_out, Tensor hidden, Tensor? weights, Tensor gate_up, Tensor down, Tensor counts, "
    "Tensor? token_ids, Tensor? inverse, Tensor? starts, Tensor kept, bool[] needed) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("mixture", _forward, "CPU")
_LIBRARY.impl("mixture_backward", _backward, "CPU")
torch.library.register_fake("moesaic::mixture", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("moesaic::mixture_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("moesaic::mixture", _differentiate, setup_context=_keep_context, lib=_LIBRARY)
torch.library.register_autograd("moesaic::mixture_backward", _refuse_second_derivatives, lib=_LIBRARY)
