"""The root-mean-square norm: values, gradients, dtypes."""

import pytest
import torch

from moesaic.ops.norm import rms_norm
from moesaic.ops.reference import norm as oracle
from moesaic.testing.tolerance import is_close


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 3, 5), (0, 5)])
def test_rms_norm_equals_one_row_at_a_time_when_shape_is(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape[-1], dtype=torch.float64)
    assert is_close(rms_norm(x, weight, 1e-3), oracle.rms_norm(x, weight, 1e-3))


@pytest.mark.parametrize("shape", [(3,), (4, 1), (2, 3, 5)])
def test_rms_norm_gradients_equal_finite_differences_when_shape_is(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), [x, weight])


def test_rms_norm_gives_zero_when_a_row_is_zero() -> None:
    assert torch.equal(rms_norm(torch.zeros(2, 4), torch.ones(4), 1e-6), torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_norm_takes_the_mean_in_float32_when_rows_are(dtype: torch.dtype) -> None:
    # 300 squared is beyond float16.
    x, weight = 300 * torch.randn(3, 8).to(dtype), torch.rand(8)
    found = rms_norm(x, weight, 1e-6)
    assert found.dtype == dtype
    assert is_close(found, oracle.rms_norm(x.double(), weight.double(), 1e-6))


def test_rms_norm_gradient_is_that_of_float32_when_rows_are_bfloat16() -> None:
    narrow = torch.randn(4, 8).bfloat16().requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    weight = torch.rand(8, requires_grad=True)
    mix = torch.randn(4, 8)
    found = torch.autograd.grad((rms_norm(narrow, weight, 1e-6).float() * mix.bfloat16()).sum(), [narrow, weight])
    expected = torch.autograd.grad((oracle.rms_norm(wide, weight, 1e-6) * mix.bfloat16()).sum(), [wide, weight])
    assert is_close(found[0], expected[0])
    assert found[1].dtype == torch.float32
    assert is_close(found[1].bfloat16(), expected[1])
