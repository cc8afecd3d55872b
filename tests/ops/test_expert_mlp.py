"""The experts' MLPs: values against one row at a time, then gradients, then dtypes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.expert_mlp import expert_mlp
from moesaic.ops.reference import expert_mlp as oracle
from moesaic.testing.tolerance import is_close
from tests.ops.computer import each_computer
from tests.ops.conftest import Computer

COUNTS = st.lists(st.integers(0, 4), min_size=1, max_size=7)


def _inputs(
    counts: list[int], width: int = 6, hidden_width: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, gate_up and down, all of them leaves."""
    shapes = [(sum(counts), width), (len(counts), 2 * hidden_width, width), (len(counts), width, hidden_width)]
    rows_ND, gate_up, down = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return rows_ND, gate_up, down


@given(counts=COUNTS)
def test_expert_mlp_equals_one_row_at_a_time_when_some_experts_are_idle(counts: list[int]) -> None:
    rows_ND, gate_up, down = _inputs(counts)
    counts_E = torch.tensor(counts)
    assert is_close(expert_mlp(rows_ND, gate_up, down, counts_E), oracle.expert_mlp(rows_ND, gate_up, down, counts_E))


@given(counts=COUNTS)
def test_expert_mlp_gradients_equal_autograd_when_some_experts_are_idle(counts: list[int]) -> None:
    inputs, counts_E = _inputs(counts), torch.tensor(counts)
    weight_ND = torch.randn(sum(counts), 6, dtype=torch.float64)
    found = torch.autograd.grad((expert_mlp(*inputs, counts_E) * weight_ND).sum(), inputs)
    expected = torch.autograd.grad(
        (oracle.expert_mlp(*inputs, counts_E) * weight_ND).sum(), inputs, materialize_grads=True
    )
    assert all(is_close(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("counts", [[1], [0, 3, 0, 2], [0, 0]], ids=["one row", "idle experts", "no rows"])
def test_expert_mlp_gradients_equal_finite_differences_when_counts_are(counts: list[int]) -> None:
    counts_E = torch.tensor(counts)
    assert torch.autograd.gradcheck(
        lambda rows, gate_up, down: expert_mlp(rows, gate_up, down, counts_E), _inputs(counts, 3, 2)
    )


# Rows of each expert, D and F; why such sizes are awkward, testing/cases.py tells.
SHAPES = {
    "one row": ([0, 1, 0], 32, 16),
    "rows beside a tile": ([15, 16, 0, 17, 31, 32, 33, 1], 48, 48),
    "odd widths": ([3, 0, 20], 37, 19),
    "one value": ([2, 1], 1, 1),
    "cut into segments": ([0, 1030], 65, 33),
    "wide": ([3, 2], 1057, 40),
    "no rows": ([0, 0], 32, 16),
    "no experts": ([], 32, 16),
    "no width": ([2], 0, 0),
}


@each_computer
@pytest.mark.parametrize("name", SHAPES)
def test_expert_mlp_and_gradients_stay_near_float64_when_the_shape_is(name: str, computer: Computer) -> None:
    counts, width, hidden_width = SHAPES[name]
    counts_E = torch.tensor(counts, dtype=torch.int64)
    rows_ND, gate_up, down = (each.detach() for each in _inputs(counts, width, hidden_width))
    scaled = rows_ND, gate_up / max(width, 1) ** 0.5, down / max(hidden_width, 1) ** 0.5
    inputs = [each.to(computer.dtype).requires_grad_() for each in scaled]
    doubles = [each.detach().double().requires_grad_() for each in inputs]
    found, expected = expert_mlp(*inputs, counts_E), oracle.expert_mlp(*doubles, counts_E)
    assert found.dtype == computer.dtype
    assert is_close(found, expected)
    grad_ND = torch.randn(sum(counts), width).to(computer.dtype)
    grads = torch.autograd.grad(found, inputs, grad_ND)
    exact = torch.autograd.grad(expected, doubles, grad_ND.double(), allow_unused=True, materialize_grads=True)
    assert all(is_close(mine, theirs) for mine, theirs in zip(grads, exact, strict=True))


def test_expert_mlp_refuses_dtypes_when_they_differ() -> None:
    rows_ND, gate_up, down = _inputs([2])
    with pytest.raises(UnsupportedError, match="gate_up holds float32") as caught:
        expert_mlp(rows_ND, gate_up.float(), down, torch.tensor([2]))
    assert caught.value.hint == "give it as float64"
