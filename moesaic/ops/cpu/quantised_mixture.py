"""The mixture of experts with low-bit weights in the compiled kernels, as a torch operator."""

import ctypes

import torch
from torch import Tensor

from moesaic.ops.cpu.description import Described, Mixture, as_slots, open_library
from moesaic.ops.cpu.library import check_status
from moesaic.ops.cpu.mixture import list_routing
from moesaic.ops.permutation import Permutation
from moesaic.ops.quant import QuantisedExperts


class Quantised(ctypes.Structure):
    """`MoesaicQuantised` of csrc/moesaic.h."""

    _fields_ = [
        ("mixture", Mixture),
        ("gate_up_scales", ctypes.c_void_p),
        ("down_scales", ctypes.c_void_p),
        ("bits", ctypes.c_int32),
        ("gate_up_scales_stride", ctypes.c_int64),
        ("down_scales_stride", ctypes.c_int64),
    ]


class DescribedQuantised:
    """Tensors of a mixture with low-bit weights as the kernels read them, alive as long as this.

    Attributes:
        quantised: what points at them.
    """

    def __init__(
        self,
        hidden: Tensor,
        weights: Tensor,
        gate_up: Tensor,
        gate_up_scales: Tensor,
        down: Tensor,
        down_scales: Tensor,
        routing: list[Tensor],
        hidden_width: int,
    ) -> None:
        described = Described(hidden, weights, gate_up, down, routing)
        described.mixture.hidden_width = hidden_width
        gate_up_scales, gate_up_scales_stride = as_slots(gate_up_scales)
        down_scales, down_scales_stride = as_slots(down_scales)
        self._alive = described, gate_up_scales, down_scales
        self.quantised = Quantised(
            described.mixture,
            gate_up_scales.data_ptr(),
            down_scales.data_ptr(),
            8 if gate_up.dtype == torch.int8 else 4,
            gate_up_scales_stride,
            down_scales_stride,
        )


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
    described = DescribedQuantised(hidden, weights, gate_up, gate_up_scales, down, down_scales, routing, hidden_width)
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    status = open_library().moesaic_quantised_forward(ctypes.byref(described.quantised), out.data_ptr())
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
