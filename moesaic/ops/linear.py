"""A linear map of which, in inference, a few rows stream the weight once, at the memory's speed.

torch's product of one row of bfloat16 reads at a quarter of what two cores can; of many rows it is as fast as ours.
"""

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.ops.backend import choose_backend
from moesaic.ops.cpu import linear as compiled

# Rows up to which a product reads weights for most of its time.
MOST_ROWS = 32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Map [..., K] by a weight [D, K] and a bias [D], all of one dtype, to [..., D].

    Of up to `MOST_ROWS` rows of bfloat16, without gradients, our kernels compute each row apart from the others; all
    else is torch's.
    """
    is_few = x.dtype == torch.bfloat16 == weight.dtype and 0 < x.numel() <= MOST_ROWS * x.shape[-1]
    if not is_few or torch.is_grad_enabled() or choose_backend("linear", x) != "compiled":
        return functional.linear(x, weight, bias)
    rows_NK = x.reshape(-1, x.shape[-1])
    out = compiled.multiply(rows_NK, weight.contiguous()).view(*x.shape[:-1], len(weight))
    return out if bias is None else out + bias
