"""The mixture of low-bit experts, one pair of token and expert after another, in Python's own integers."""

import torch
from torch import Tensor

from moesaic.ops.permutation import Permutation
from moesaic.ops.quant import QuantisedExperts, integers_of
from moesaic.ops.reference.quantised_linear import multiply


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
            gate, up = multiply(hidden_TD[token].float(), gate_up).chunk(2)
            result = multiply(gate / (1 + torch.exp(-gate)) * up, down).to(hidden_TD.dtype)
            out_TD[token] += result.float() * weights_N[pair].float()
    return out_TD.to(hidden_TD.dtype)
