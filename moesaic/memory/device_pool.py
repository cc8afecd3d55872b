"""Slots on a device, or in host memory where that stands for one."""

import torch
from torch import Tensor

from moesaic.memory.page import PageLayout


class DevicePool:
    """S equal slots of one tensor, whose memory is taken at once and given back as a whole.

    Attributes:
        fields: each field of the layout as a tensor [S, ...] over all slots.
    """

    def __init__(self, layout: PageLayout, num_slots: int, device: torch.device) -> None:
        self.layout = layout
        self.num_slots = num_slots
        self._records = torch.empty(num_slots, layout.num_bytes, dtype=torch.uint8, device=device)
        self.fields: dict[str, Tensor] = layout.views(self._records)

    def record(self, slot: int) -> Tensor:
        """Return the bytes of a slot: uint8 [layout.num_bytes]."""
        return self._records[slot]
