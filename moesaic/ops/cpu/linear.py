"""A linear map of a few rows in the compiled kernels."""

import ctypes

import torch
from torch import Tensor

from moesaic.ops.cpu.description import DTYPES, Mixture, address_of, open_library
from moesaic.ops.cpu.library import InstructionSet, check_status, choose_instruction_set


def multiply(rows_NK: Tensor, weight_DK: Tensor) -> Tensor:
    """Return rows [N, K] times the transposed weight [D, K], both contiguous, [N, D]."""
    chosen = choose_instruction_set()
    assert isinstance(chosen, InstructionSet), "the caller asked explain_refusal"
    num_rows, depth = rows_NK.shape
    out_ND = torch.empty(num_rows, len(weight_DK), dtype=rows_NK.dtype)
    counts = ctypes.c_int64(num_rows)
    # A grouped product of one expert: no gate_up.
    mixture = Mixture(
        chosen.number,
        DTYPES[rows_NK.dtype],
        torch.get_num_threads(),
        num_rows,
        num_rows,
        len(weight_DK),
        depth,
        1,
        counts=ctypes.addressof(counts),
        hidden=address_of(rows_NK),
        down=address_of(weight_DK),
    )
    status = open_library().moesaic_mixture_forward(ctypes.byref(mixture), out_ND.data_ptr())
    check_status(status, "multiplying a few rows")
    return out_ND
