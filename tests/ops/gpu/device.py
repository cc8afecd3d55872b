"""Where the kernels are tested, and on what.

On a CUDA device they run as any test does. Without one they run in triton's interpreter, whose switch is read when
triton is first imported and would stay on for every other test of the process: `test_interpreted.py` gives it a
process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from moesaic.ops.gpu.refusal import DTYPES, HAS_TRITON, is_interpreting

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAN_RUN = HAS_TRITON and (DEVICE == "cuda" or is_interpreting())
# Not collected where they cannot run: they import triton.
KERNEL_TESTS = ("test_route.py", "test_permute.py", "test_swiglu.py", "test_mixture.py")

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    """Return a leaf of normal numbers, the same on every device."""
    return torch.randn(shape).to(DEVICE, dtype).requires_grad_()


def in_float64(*tensors: Tensor) -> list[Tensor]:
    """Return the same numbers as leaves for an oracle."""
    return [tensor.detach().cpu().double().requires_grad_() for tensor in tensors]


def run_alone(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run python in a process that sees no CUDA device, and whose triton does not yet know how it is to run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
