"""A pool of slots for tests: experts are copied in for a wave, and nothing stays of them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from moesaic.ops.quant import QuantisedExperts

Experts = tuple[Tensor, Tensor] | QuantisedExperts
Groups = Sequence[Sequence[int]]
_NAMES = ("gate_up", "gate_up_scales", "down", "down_scales")


class Pool:
    """Slots, each a record of all tensors of an expert.

    Attributes:
        slots: the experts that somebody computes with; of as many as fit a wave.
        places: where each expert of the present wave lies.
    """

    def __init__(self, experts: Experts, order: Sequence[int], gap_bytes: int = 64) -> None:
        """Lay out a slot for each number in `order`, which are taken in this order; the gap is between records."""
        self._sources = _fields_of(experts)
        self._order = order
        self._num_experts = len(self._sources[0])
        starts, end = [], 0
        for source in self._sources:
            starts.append(end)
            end += -(-prod(source.shape[1:]) * source.element_size() // 64) * 64
        self._records = torch.empty(len(order), end + gap_bytes, dtype=torch.uint8)
        self._fields = [self._view(source, start) for source, start in zip(self._sources, starts, strict=True)]
        self.slots: Experts = (self._fields[0], self._fields[1])
        if isinstance(experts, QuantisedExperts):
            named: dict[str, Any] = dict(zip(_NAMES, self._fields, strict=True))
            self.slots = replace(experts, **named)
        self._clear()

    def bring(self, groups: Groups) -> Iterator[Tensor]:
        """Give a wave for each group of experts."""
        for group in groups:
            places_E = torch.full((self._num_experts,), -1)
            for expert, slot in zip(group, self._order, strict=False):
                places_E[expert] = slot
                for field, source in zip(self._fields, self._sources, strict=True):
                    field[slot] = source[expert]
            yield places_E
            self._clear()

    def _view(self, source: Tensor, start: int) -> Tensor:
        size = prod(source.shape[1:]) * source.element_size()
        return self._records[:, start : start + size].view(source.dtype).unflatten(1, source.shape[1:])

    def _clear(self) -> None:
        self._records.fill_(255)  # a NaN of every floating dtype


def _fields_of(experts: Experts) -> list[Tensor]:
    if isinstance(experts, QuantisedExperts):
        return [getattr(experts, name) for name in _NAMES]
    return list(experts)


def deal(num_experts: int, num_waves: int) -> list[list[int]]:
    """Deal experts to waves as cards."""
    return [list(range(wave, num_experts, num_waves)) for wave in range(num_waves)]
