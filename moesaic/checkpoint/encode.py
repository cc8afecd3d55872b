"""Weights as they are to be written, as they are or rounded to a few bits: the record of an expert, a matrix."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from moesaic.memory.page import PageLayout
from moesaic.memory.pool import Pool
from moesaic.ops.quant import (
    QuantisedMatrix,
    dequantise,
    matrix_to_noise_db,
    quantise_experts,
    quantise_matrix,
    signal_to_noise_db,
)


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
        return {name: _to_two_digits(each) for name, each in decibels.items()}


def encode_matrix(weight: Tensor) -> tuple[QuantisedMatrix, float | None]:
    """Round a matrix [channels, depth] of any floating dtype to 8 bits; return it, and the cost as `Encoder` does.

    Raises:
        UnsupportedError: a weight is not finite.
    """
    matrix = quantise_matrix(weight)
    return matrix, _to_two_digits(matrix_to_noise_db(weight, matrix))


def _to_two_digits(decibels: float) -> float | None:
    return round(decibels, 2) if math.isfinite(decibels) else None
