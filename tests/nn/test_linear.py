"""Linear maps and gated MLPs whose weights are wider than the activations."""

import pytest
import torch
from torch.nn import functional

from moesaic.nn.linear import Linear
from moesaic.nn.mlp import GatedMlp
from moesaic.testing.tolerance import is_close


@pytest.mark.parametrize("bias", [False, True])
def test_linear_computes_in_the_dtype_of_its_input_when_weights_are_float32(bias: bool) -> None:
    linear, x = Linear(6, 3, bias=bias), torch.randn(2, 6)
    narrow = linear(x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert is_close(narrow, linear(x))


def test_linear_gradient_stays_float32_when_its_input_is_bfloat16() -> None:
    linear = Linear(6, 3)
    linear(torch.randn(2, 6).bfloat16()).sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32


@torch.no_grad()
def test_gated_mlp_gates_the_up_projection_when_applied() -> None:
    mlp, x = GatedMlp(4, 3), torch.randn(2, 4)
    gate, up, down = (part.weight for part in (mlp.gate, mlp.up, mlp.down))
    assert is_close(mlp(x), (functional.silu(x @ gate.t()) * (x @ up.t())) @ down.t())
