"""A linear map with weights of 8 bits, one row and one channel after another, in Python's own integers."""

import torch
from torch import Tensor

from moesaic.ops.quant import IntegerMatrix


def quantise(row: Tensor) -> tuple[list[int], Tensor]:
    """Return the integers of a float32 row and their scale."""
    most = row.abs().max().clamp_min(1e-30)
    if not most.isfinite():
        return [0] * len(row), torch.tensor(torch.nan)
    return [int(each) for each in (row * (torch.tensor(127.0) / most)).round()], most / 127


def multiply(row: Tensor, matrix: IntegerMatrix) -> Tensor:
    """Return a float32 row [depth] times a matrix [channels, depth], [channels]."""
    integers, scale = quantise(row)
    sums = [sum(a * b for a, b in zip(integers, channel, strict=True)) for channel in matrix.integers.tolist()]
    return torch.tensor(sums, dtype=torch.int64).float() * matrix.scales * scale


def quantised_linear(rows: Tensor, parts: list[IntegerMatrix]) -> Tensor:
    """Return [N, channels]: rows times the parts of a matrix, one part's channels after the other's."""
    out = [torch.cat([multiply(row.float(), part) for part in parts]) for row in rows]
    return torch.stack(out).to(rows.dtype)
