"""The mixture of experts by every implementation against one pair at a time: values, then gradients."""

from collections.abc import Sequence
from functools import cache
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.cpu.mixture import list_routing
from moesaic.ops.mixture import mix_experts
from moesaic.ops.reference import mixture as oracle
from moesaic.testing.cases import (
    MIXTURE_CASES,
    Chosen,
    MixtureCase,
    MixtureInputs,
    choose_at_random,
    draw_mixture,
)
from moesaic.testing.tolerance import TOLERANCES, relative_error
from tests.ops.computer import each_compiled, each_computer
from tests.ops.conftest import Computer

NAMES = ("hidden_TD", "weights_N", "gate_up", "down")
SMALL = MixtureCase("quick, with tails everywhere", 40, 24, 3, choose_at_random(20, 3, 2))


def _expect(case: MixtureCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the output and the gradients in float64, from numbers rounded to the dtype."""
    inputs = draw_mixture(case, dtype)
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]
    out = oracle.mix_experts(*leaves, case.chosen)
    if not any(case.chosen):  # without pairs it is made of none of them
        return {"out": out} | {name: torch.zeros_like(leaf) for name, leaf in zip(NAMES, leaves, strict=True)}
    return _collect(out, leaves, inputs.grad_TD.double())


_expect_cached = cache(_expect)


def _compute(inputs: MixtureInputs) -> dict[str, Tensor]:
    out = mix_experts(*inputs.leaves, inputs.permutation)
    assert out.dtype == inputs.hidden_TD.dtype
    return _collect(out, inputs.leaves, inputs.grad_TD)


def _collect(out: Tensor, leaves: Sequence[Tensor], grad_TD: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(out, leaves, grad_TD)
    return {"out": out.detach()} | dict(zip(NAMES, grads, strict=True))


def _check(found: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, mine in found.items():
        # The gradient of the weights, float32, comes from values of the narrow dtype, and is as exact as they are.
        error = relative_error(mine, expected[name])
        assert error <= TOLERANCES[dtype], f"{name} is off by {error:.1e} of its largest value"


@each_computer
@pytest.mark.parametrize("name", MIXTURE_CASES)
def test_mixture_and_gradients_equal_the_oracle_when_the_case_is(name: str, computer: Computer) -> None:
    case = MIXTURE_CASES[name]
    found = _compute(draw_mixture(case, computer.dtype))
    _check(found, _expect_cached(case, computer.dtype), computer.dtype)


@st.composite
def _draw_case(draw: st.DrawFn) -> MixtureCase:
    num_experts = draw(st.integers(1, 6))
    experts = st.lists(st.integers(0, num_experts - 1), max_size=4).map(tuple)
    chosen: Chosen = tuple(draw(st.lists(experts, max_size=40)))
    return MixtureCase("drawn", draw(st.integers(1, 70)), draw(st.integers(1, 70)), num_experts, chosen)


@each_compiled
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(case=_draw_case())
def test_mixture_and_gradients_equal_the_oracle_when_the_shape_is_drawn(case: MixtureCase, computer: Computer) -> None:
    _check(_compute(draw_mixture(case, computer.dtype)), _expect(case, computer.dtype), computer.dtype)


@each_computer
def test_wanted_gradients_stay_the_same_when_others_are_not_wanted(computer: Computer) -> None:
    inputs = draw_mixture(SMALL, computer.dtype)
    everything = _compute(inputs)
    for wanted in product([False, True], repeat=4):
        leaves = [leaf.detach().requires_grad_(want) for leaf, want in zip(inputs.leaves, wanted, strict=True)]
        out = mix_experts(*leaves, inputs.permutation)
        assert torch.equal(out, everything["out"])
        assert out.requires_grad == any(wanted)
        if any(wanted):
            out.backward(inputs.grad_TD)
        for name, leaf, want in zip(NAMES, leaves, wanted, strict=True):
            assert (leaf.grad is not None) == want
            assert leaf.grad is None or torch.equal(leaf.grad, everything[name])


@each_computer
def test_weights_of_any_dtype_are_taken_when_the_rest_is_another(computer: Computer) -> None:
    inputs = draw_mixture(SMALL, computer.dtype)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weights_N = inputs.weights_N.detach().bfloat16().to(dtype).requires_grad_()
        out = mix_experts(inputs.hidden_TD, weights_N, inputs.gate_up, inputs.down, inputs.permutation)
        (grad_N,) = torch.autograd.grad(out, weights_N, inputs.grad_TD)
        assert (out.dtype, grad_N.dtype) == (computer.dtype, dtype)
        leaves = [inputs.hidden_TD, weights_N, inputs.gate_up, inputs.down]
        expected = oracle.mix_experts(*(leaf.double() for leaf in leaves), SMALL.chosen)
        assert relative_error(out, expected) <= TOLERANCES[computer.dtype]


@each_computer
def test_mixture_and_gradients_keep_their_bits_when_expert_ids_are_given(computer: Computer) -> None:
    inputs = draw_mixture(SMALL, computer.dtype)
    ids_TK = torch.tensor(SMALL.chosen)
    weights_TK = inputs.weights_N.detach().view(ids_TK.shape).requires_grad_()
    leaves = inputs.hidden_TD, weights_TK, inputs.gate_up, inputs.down
    found = _collect(mix_experts(*leaves, ids_TK), leaves, inputs.grad_TD)
    for name, expected in _compute(inputs).items():
        assert torch.equal(found[name].view_as(expected), expected), name
    with torch.no_grad():
        assert torch.equal(mix_experts(*leaves, ids_TK), found["out"])


@each_compiled
def test_rows_keep_their_bits_when_they_are_too_many_for_a_cache(computer: Computer) -> None:
    random = torch.Generator().manual_seed(0)
    hidden_TD, gate_up, down = (
        torch.randn(*shape, generator=random).to(computer.dtype)
        for shape in [(2100, 1024), (1, 32, 1024), (1, 1024, 16)]
    )
    weights_TK, ids_TK = torch.rand(2100, 1, generator=random), torch.zeros(2100, 1, dtype=torch.int64)
    together = mix_experts(hidden_TD, weights_TK, gate_up, down, ids_TK)  # 4.1 MiB of bfloat16
    alone = [
        mix_experts(hidden_TD[rows], weights_TK[rows], gate_up, down, ids_TK[rows])
        for rows in (slice(0, 700), slice(700, 1400), slice(1400, 2100))
    ]
    assert torch.equal(together, torch.cat(alone))


ROUTINGS = ("a permutation", "expert ids", "plain rows")


@each_compiled
@pytest.mark.parametrize("routing", ROUTINGS)
def test_operators_keep_the_promises_of_torch_when_checked(routing: str, computer: Computer) -> None:
    inputs = draw_mixture(SMALL, computer.dtype)
    hidden, weights, gate_up, down = (leaf.detach().requires_grad_() for leaf in inputs.leaves)
    routed = list_routing(inputs.permutation)
    if routing == "expert ids":
        weights, routed = weights.detach().view(20, 2).requires_grad_(), [torch.tensor(SMALL.chosen)]
    if routing == "plain rows":
        hidden = torch.randn(len(weights), SMALL.width).to(computer.dtype).requires_grad_()
        weights, routed = None, [inputs.permutation.counts_E]
    leaves = hidden, weights, gate_up, down
    plain = [None if each is None else each.detach() for each in leaves]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.moesaic.mixture.default, (*plain, routed), test_utils=checks)
    torch.library.opcheck(torch.ops.moesaic.mixture_with_gradient.default, (*leaves, routed), test_utils=checks)
    out, kept = torch.ops.moesaic.mixture_with_gradient(*plain, routed)
    for needed in ([True, weights is not None, True, True], [True, False, False, True]):
        arguments = (torch.randn_like(out), *plain, routed, kept, needed)
        torch.library.opcheck(torch.ops.moesaic.mixture_backward.default, arguments, test_utils=checks)


@each_compiled
def test_second_derivatives_are_refused_when_asked_for(computer: Computer) -> None:
    inputs = draw_mixture(SMALL, computer.dtype)
    out = mix_experts(*inputs.leaves, inputs.permutation)
    (grad_TD,) = torch.autograd.grad(out, inputs.hidden_TD, inputs.grad_TD, create_graph=True)
    with pytest.raises(UnsupportedError, match="no second derivatives") as caught:
        grad_TD.sum().backward()
    assert "MOESAIC_ISA=none" in caught.value.hint
