"""The mixture of experts with low-bit weights in the compiled kernels, as a torch operator."""

import ctypes

import torch
from torch import Tensor

from moesaic.ops.cpu.library import check_status
from moesaic.ops.cpu.mixture import Described, Mixture, list_routing, open_library
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
    hidden_TD: Tensor, weights: Tensor, experts: QuantisedExperts, routing: Permutation | Tensor
) -> Tensor:
    """Mix, as `ops/quantised_mixture.py` says."""
    matrices = experts.gate_up, experts.gate_up_scales, experts.down, experts.down_scales
    return torch.ops.moesaic.mixture_quantised.default(
        hidden_TD, weights.float(), *matrices, list_routing(routing), experts.hidden_width
    )


def _forward(
    hidden: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scales: Tensor,
    down: Tensor,
    down_scales: Tensor,
    routing: list[Tensor],
    hidden_width: int,
) -> Tensor:
    described = Described(hidden, weights, gate_up, down, routing)
    described.mixture.hidden_width = hidden_width
    scales = gate_up_scales.contiguous(), down_scales.contiguous()
    bits = 8 if gate_up.dtype == torch.int8 else 4
    quantised = _Quantised(described.mixture, scales[0].data_ptr(), scales[1].data_ptr(), bits)
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    status = open_library().moesaic_quantised_forward(ctypes.byref(quantised), out.data_ptr())
    check_status(status, "mixing quantised experts")
    return out


def _fake_forward(hidden, *_):  # type: ignore[no-untyped-def]
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


_LIBRARY = torch.library.Library("moesaic", "FRAGMENT")
_LIBRARY.define(
    "mixture_quantised(Tensor hidden, Tensor weights, Tensor gate_up, Tensor gate_up_scales, Tensor down, "
    "Tensor down_scales, Tensor[] routing, int hidden_width) -> Tensor"
)
_LIBRARY.impl("mixture_quantised", _forward, "CPU")
torch.library.register_fake("moesaic::mixture_quantised", _fake_forward, lib=_LIBRARY)
