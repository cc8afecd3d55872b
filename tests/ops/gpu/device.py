"""Where the kernels are tested, and on what.

On a CUDA device they run as any test does. Without one they run in triton's interpreter, whose switch is read when
triton is first imported and would stay on for every other test of the process: `test_interpreted.py` gives it a
process of its own.
"""

import pytest
import torch
from torch import Tensor

from moesaic.ops.gpu.refusal import DTYPES, HAS_TRITON, is_interpreting

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAN_RUN = HAS_TRITON and (DEVICE == "cuda" or is_interpreting())
# Not collected where they cannot run: they import triton.
KERNEL_TESTS = ("test_route.py", "test_permute.py", "test_swiglu.py", "test_mixture.py")

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return a leaf of normal numbers, the same on every device."""
    return torch.randn(shape).to(DEVICE, dtype).requires_grad_()


def in_float64(*tensors: Tensor) -> list[Tensor]:
    """Return the same numbers as leaves for an oracle."""
    return [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]
