"""The record of an expert, made from its weights: as they are, or rounded to a few bits."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from moesaic.memory.page import PageLayout
from moesaic.memory.pool import Pool
from moesaic.ops.quant import dequantise, quantise_experts, signal_to_noise_db


class Encoder:
    """Makes one record after another, in the same memory.

    Args:
        layout: of a record.
        bits: of its weights, 8 or 4; None: floats, cast to what the layout says.

    Attributes:
        bits: the same.
        record: bytes of the record that was made last, uint8.
    """

    def __init__(self, layout: PageLayout, bits: int | None) -> None:
        self._pool = Pool(layout, 1)
        self.record = torch.from_numpy(self._pool.record(0))
        self.bits = bits

    def encode(self, weights: Mapping[str, Tensor]) -> dict[str, float | None]:
        """Make the record of an expert.

        Args:
            weights: gate_up [2F, D] and down [D, F] of any floating dtype.

        Returns:
            What rounding to a few bits cost each of them: `signal_to_noise_db` to two digits, None for nothing.

        Raises:
            UnsupportedError: a weight that is to be rounded is not finite.
        """
        if self.bits is None:
            for name, values in weights.items():
                self._pool.fields[name][0] = values
            return {}
        originals = {name: values.unsqueeze(0) for name, values in weights.items()}
        quantised = quantise_experts(**originals, bits=self.bits)
        for name, slots in self._pool.fields.items():
            slots.copy_(getattr(quantised, name))
        restored = zip(originals.items(), dequantise(quantised), strict=True)
        decibels = {name: signal_to_noise_db(original, rounded).item() for (name, original), rounded in restored}
        return {name: round(each, 2) if math.isfinite(each) else None for name, each in decibels.items()}
