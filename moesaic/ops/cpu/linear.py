"""A linear map of a few rows in the compiled kernels."""

import ctypes

import torch
from torch import Tensor

from moesaic.ops.cpu.description import DescribedProduct, open_library
from moesaic.ops.cpu.library import check_status


def multiply(rows_NK: Tensor, weight_DK: Tensor) -> Tensor:
    """Return rows [N, K] times the transposed weight [D, K], which is contiguous, [N, D]."""
    described = DescribedProduct(rows_NK, weight_DK, len(weight_DK))
    out_ND = torch.empty(len(rows_NK), len(weight_DK), dtype=rows_NK.dtype)
    status = open_library().moesaic_mixture_forward(ctypes.byref(described.mixture), out_ND.data_ptr())
    check_status(status, "multiplying a few rows")
    return out_ND
