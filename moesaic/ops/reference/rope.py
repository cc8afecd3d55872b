"""Oracle of `ops/rope.py`: each channel pair as a complex number, turned by its angle."""

import cmath

import torch
from torch import Tensor


def rotate(x_BSHC: Tensor, positions_BS: Tensor, frequencies: Tensor, scale: float) -> Tensor:
    """Multiply pair c of every head at position p by scale * exp(i p frequency_c)."""
    half = x_BSHC.shape[-1] // 2
    out_BSHC = torch.empty_like(x_BSHC)
    for sequence, row_S in enumerate(positions_BS.tolist()):
        for index, position in enumerate(row_S):
            for pair, frequency in enumerate(frequencies.tolist()):
                turn = scale * cmath.exp(1j * position * frequency)
                for head in range(x_BSHC.shape[2]):
                    at = x_BSHC[sequence, index, head]
                    turned = complex(at[pair], at[half + pair]) * turn
                    out_BSHC[sequence, index, head, pair] = turned.real
                    out_BSHC[sequence, index, head, half + pair] = turned.imag
    return out_BSHC
