"""A linear map with weights of 8 bits in the compiled kernels."""

import ctypes

import torch
from torch import Tensor

from moesaic.ops.cpu.description import DescribedProduct, address_of, open_library
from moesaic.ops.cpu.library import check_status
from moesaic.ops.cpu.quantised_mixture import Quantised
from moesaic.ops.quant import QuantisedMatrix


def multiply(rows: Tensor, matrix: QuantisedMatrix) -> Tensor:
    """Return rows [N, depth] times the transposed matrix [channels, depth], [N, channels]."""
    blocks, scales = matrix.blocks.contiguous(), matrix.scales.contiguous()
    described = DescribedProduct(rows, blocks, matrix.channels)
    quantised = Quantised(described.mixture, None, scales.data_ptr(), 8)
    out = torch.empty(len(rows), matrix.channels, dtype=rows.dtype)
    status = open_library().moesaic_quantised_forward(ctypes.byref(quantised), address_of(out))
    check_status(status, "multiplying by weights of 8 bits")
    return out
