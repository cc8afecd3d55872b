"""The mixture of experts with low-bit weights in the compiled kernels, as a torch operator."""

import ctypes

import torch
from torch import Tensor

from moesaic.ops.cpu.library import check_status
from moesaic.ops.cpu.mixture import Mixture, contiguous, describe, open_library, take_scratch
from moesaic.ops.permutation import Permutation
from moesaic.ops.quant import QuantisedExperts


class _Quantised(ctypes.Structure):
    """`MoesaicQuantised` of csrc/moesaic.h."""

    _fields_ = [
        ("mixture", Mixture),
        ("gate_up_scales", ctypes.c_void_p),
        ("down_scales", ctypes.c_void_p),
        ("bits", ctypes.c_int32),
    ]


def mix_experts_quantised(
    hidden_TD: Tensor, weights_N: Tensor, experts: QuantisedExperts, permutation: Permutation
) -> Tensor:
    """Mix, as `ops/quantised_mixture.py` says."""
    return torch.ops.moesaic.mixture_quantised(
        hidden_TD,
        weights_N.float(),
        experts.gate_up,
        experts.gate_up_scales,
        experts.down,
        experts.down_scales,
        permutation.counts_E,
        permutation.token_ids_N,
        permutation.inverse_N,
        permutation.starts_T,
        experts.hidden_width,
    )


def _forward(
    hidden: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    counts: Tensor,
    token_ids: Tensor,
    inverse: Tensor,
    starts: Tensor,
    hidden_width: int,
) -> Tensor:
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    inputs = contiguous(hidden, weights, gate_up, down, counts, token_ids, inverse, starts)
    mixture = describe(*inputs)
    mixture.hidden_width = hidden_width
    scales = contiguous(gate_up_scales, down_scales)
    bits = 8 if gate_up.dtype == torch.int8 else 4
    quantised = _Quantised(mixture, scales[0].data_ptr(), scales[1].data_ptr(), bits)
    library = open_library()
    # The mixture lies first, so its address is that of the whole.
    scratch = take_scratch(quantised.mixture, library.moesaic_quantised_forward_scratch)
    assert len(scratch), "named, so that it lives"
    status = library.moesaic_quantised_forward(ctypes.byref(quantised), out.data_ptr())
    check_status(status, "mixing quantised experts")
    return out


def _fake_forward(hidden, *_):  # type: ignore[no-untyped-def]
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


_LIBRARY = torch.library.Library("moesaic", "FRAGMENT")
_LIBRARY.define(
    "mixture_quantised(Tensor hidden, Tensor weights, Tensor gate_up, Tensor gate_up_scales, Tensor down, "
    "Tensor down_scales, Tensor counts, Tensor token_ids, Tensor inverse, Tensor starts, int hidden_width) -> Tensor"
)
_LIBRARY.impl("mixture_quantised", _forward, "CPU")
torch.library.register_fake("moesaic::mixture_quantised", _fake_forward, lib=_LIBRARY)
