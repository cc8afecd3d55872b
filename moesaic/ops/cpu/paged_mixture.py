"""Rows of a mixture whose experts come to the slots of a pool wave by wave, in the compiled kernels."""

import ctypes

import torch
from torch import Tensor

from moesaic.ops.cpu.description import Described, address_of, open_library
from moesaic.ops.cpu.library import check_status
from moesaic.ops.cpu.mixture import list_routing
from moesaic.ops.cpu.quantised_mixture import DescribedQuantised
from moesaic.ops.permutation import Permutation
from moesaic.ops.quant import QuantisedExperts


class CompiledRows:
    """Expert outputs of all rows, as `ExpertRows` of `ops/paged_mixture.py` says."""

    def __init__(
        self,
        hidden_TD: Tensor,
        weights: Tensor,
        experts: tuple[Tensor, Tensor] | QuantisedExperts,
        routing: Permutation | Tensor,
        num_experts: int,
    ) -> None:
        library, listed = open_library(), list_routing(routing)
        described: Described | DescribedQuantised
        if isinstance(experts, QuantisedExperts):
            matrices = experts.gate_up, experts.gate_up_scales, experts.down, experts.down_scales
            described = DescribedQuantised(hidden_TD, weights.float(), *matrices, listed, experts.hidden_width)
            self._given: ctypes.Structure = described.quantised
            self._mixture = described.quantised.mixture
            self._forward = library.moesaic_quantised_forward
        else:
            described = Described(hidden_TD, weights.float(), *experts, listed)
            self._given = self._mixture = described.mixture
            self._forward = library.moesaic_mixture_forward
        self._hidden_TD = hidden_TD
        rows_ND = hidden_TD.new_empty(self._mixture.num_rows, hidden_TD.shape[1])
        self._alive = described, rows_ND
        self._mixture.num_slots = self._mixture.num_experts
        self._mixture.num_experts = num_experts
        self._mixture.rows = address_of(rows_ND)

    def compute(self, places_E: Tensor, is_last: bool) -> Tensor | None:
        """Compute the rows of the experts that have a place; if they are the last, return the sums [T, D]."""
        places_E = places_E.contiguous()
        self._mixture.places = address_of(places_E)
        out_TD = torch.empty_like(self._hidden_TD, memory_format=torch.contiguous_format) if is_last else None
        out = None if out_TD is None else out_TD.data_ptr()
        check_status(self._forward(ctypes.byref(self._given), out), "mixing experts in waves")
        return out_TD
