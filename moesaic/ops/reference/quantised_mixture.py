"""The mixture of low-bit experts, one pair of token and expert after another, in Python's own integers."""

import torch
from torch import Tensor

from moesaic.ops.permutation import Permutation
from moesaic.ops.quant import IntegerMatrix, QuantisedExperts, integers_of


def mix_experts_quantised(
    hidden_TD: Tensor, weights_N: Tensor, experts: QuantisedExperts, permutation: Permutation
) -> Tensor:
    """Return [T, D]: for each token, the sum over its pairs of weight times expert output."""
    out_TD = torch.zeros(hidden_TD.shape)
    for token, start in enumerate(permutation.starts_T.tolist()):
        end = ([*permutation.starts_T.tolist(), len(weights_N)])[token + 1]
        for pair in range(start, end):
            row = int(permutation.inverse_N[pair])
            expert = int((permutation.counts_E.cumsum(0) <= row).sum())
            gate_up, down = integers_of(experts, expert)
            gate, up = _multiply(hidden_TD[token].float(), gate_up).chunk(2)
            result = _multiply(gate / (1 + torch.exp(-gate)) * up, down).to(hidden_TD.dtype)
            out_TD[token] += result.float() * weights_N[pair].float()
    return out_TD.to(hidden_TD.dtype)


def quantise(row: Tensor) -> tuple[list[int], Tensor]:
    """Return the integers of a row and their scale."""
    most = row.abs().max().clamp_min(1e-30)
    if not most.isfinite():
        return [0] * len(row), torch.tensor(torch.nan)
    return [int(each) for each in (row * (127 / most)).round()], most / 127


def _multiply(row: Tensor, matrix: IntegerMatrix) -> Tensor:
    integers, scale = quantise(row)
    sums = [sum(a * b for a, b in zip(integers, channel, strict=True)) for channel in matrix.integers.tolist()]
    return torch.tensor(sums, dtype=torch.int64).float() * matrix.scales * scale
