"""The gate's kernels against torch in float64: values, then gradients, then extremes."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moesaic.ops.gpu.swiglu import swiglu
from moesaic.testing.tolerance import is_close
from tests.ops.gpu.device import DEVICE, draw, each_dtype, in_float64


def _expected(hidden_N2F: Tensor) -> Tensor:
    gate_NF, up_NF = hidden_N2F.chunk(2, dim=-1)
    return functional.silu(gate_NF) * up_NF


@each_dtype
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (5, 20), (3, 1024), (2, 1027), (0, 8)])
def test_swiglu_and_its_gradient_equal_torch_when_size_is(num_rows: int, width: int, dtype: torch.dtype) -> None:
    hidden_N2F = draw(num_rows, 2 * width, dtype=dtype)
    steepness_NF = draw(num_rows, width, dtype=dtype).detach()
    found = swiglu(hidden_N2F)
    (gradient,) = torch.autograd.grad(found, hidden_N2F, steepness_NF)
    assert found.dtype == gradient.dtype == dtype

    (leaf,) = in_float64(hidden_N2F)
    expected = _expected(leaf)
    assert is_close(found.cpu(), expected)
    assert is_close(gradient.cpu(), torch.autograd.grad(expected, leaf, steepness_NF.cpu().double())[0])


# The interpreter computes with numpy, which says aloud that exp(1000) is infinite.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_swiglu_stays_finite_when_gates_are_extreme() -> None:
    hidden_N2F = torch.tensor([[-1000.0, -88.0, 88.0, 1000.0, 2.0, 2.0, 2.0, 2.0]], device=DEVICE, requires_grad=True)
    found = swiglu(hidden_N2F)
    assert is_close(found.cpu(), torch.tensor([[0.0, 0.0, 176.0, 2000.0]]))
    (gradient,) = torch.autograd.grad(found.sum(), hidden_N2F)
    assert is_close(gradient.cpu(), torch.tensor([[0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 88.0, 1000.0]]))


def test_swiglu_reads_the_right_numbers_when_the_input_is_a_view() -> None:
    hidden_2FN = draw(8, 3, dtype=torch.float32)
    assert torch.equal(swiglu(hidden_2FN.t()), swiglu(hidden_2FN.t().contiguous()))
