"""What must not show in the mixture's bits: threads, neighbours, a neighbour's NaN, where a tensor lies."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moesaic.ops.cpu.library import ISA_VARIABLE, NONE
from moesaic.ops.mixture import mix_experts
from moesaic.ops.permutation import Permutation
from moesaic.testing.cases import (
    MIXTURE_CASES,
    MixtureCase,
    MixtureInputs,
    choose_at_random,
    draw_mixture,
    group_chosen,
)
from tests.ops.computer import each_compiled
from tests.ops.conftest import Computer

Bits = tuple[Tensor, ...]
# Tails everywhere, every expert with more rows than a tile.
CASE = MixtureCase("", 72, 40, 3, choose_at_random(60, 3, 2))
POISON = 17  # a token; the expert that it does not choose has to stay clean
# Its gradient is a sum over F for the kernels, over D for torch: which infinities meet and make a NaN differs.
WEIGHTS = 2


@pytest.fixture(autouse=True)
def _restore_threads() -> object:
    """Give torch its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _compute(inputs: MixtureInputs) -> Bits:
    """Return the output and the four gradients."""
    out = mix_experts(*inputs.leaves, inputs.permutation)
    return out.detach(), *torch.autograd.grad(out, inputs.leaves, inputs.grad_TD)


def _equal(some: Bits, others: Bits) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@each_compiled
@pytest.mark.parametrize("name", ["rows beside a tile", "cut into segments", "D beyond a group", "uneven tokens"])
def test_bits_stay_the_same_when_threads_differ(name: str, computer: Computer) -> None:
    inputs = draw_mixture(MIXTURE_CASES[name], computer.dtype)
    torch.set_num_threads(1)
    alone = _compute(inputs)
    for num_threads in (2, 3, 7):
        torch.set_num_threads(num_threads)
        assert _equal(_compute(inputs), alone), f"{num_threads} threads"


@each_compiled
def test_bits_stay_the_same_when_callers_run_at_once(computer: Computer) -> None:
    inputs = [draw_mixture(CASE, computer.dtype, seed) for seed in range(4)]
    one_after_another = [_compute(each) for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(_compute, inputs * 3))
    assert all(map(_equal, at_once, one_after_another * 3))


@each_compiled
def test_a_token_has_the_same_bits_when_it_is_alone(computer: Computer) -> None:
    inputs = draw_mixture(CASE, computer.dtype)
    out, grad_hidden, grad_weights, *_ = _compute(inputs)
    for token in range(0, 60, 7):
        pairs = slice(2 * token, 2 * token + 2)
        single = replace(
            inputs,
            hidden_TD=inputs.hidden_TD.detach()[token : token + 1].requires_grad_(),
            weights_N=inputs.weights_N.detach()[pairs].requires_grad_(),
            permutation=group_chosen(CASE.chosen[token : token + 1], CASE.num_experts),
            grad_TD=inputs.grad_TD[token : token + 1],
        )
        found = _compute(single)[:3]
        assert _equal(found, (out[token : token + 1], grad_hidden[token : token + 1], grad_weights[pairs]))


def _widened(inputs: MixtureInputs) -> MixtureInputs:
    leaves = [leaf.detach().float().requires_grad_() for leaf in inputs.leaves]
    return MixtureInputs(*leaves, inputs.permutation, inputs.grad_TD.float())


def _poison(inputs: MixtureInputs, field: str, value: float) -> MixtureInputs:
    tensor = getattr(inputs, field).detach().clone()
    tensor[POISON, 5] = value
    return replace(inputs, **{field: tensor.requires_grad_(field != "grad_TD")})


@each_compiled
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e20])
@pytest.mark.parametrize("field", ["hidden_TD", "grad_TD"])
def test_what_is_not_finite_goes_where_torch_lets_it_go_when_one_token_has_it(
    field: str, value: float, computer: Computer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = draw_mixture(CASE, computer.dtype)
    poisoned = _poison(inputs, field, value)
    clean, found = _compute(inputs), _compute(poisoned)
    monkeypatch.setenv(ISA_VARIABLE, NONE)
    # In float32: torch's own bfloat16 products may let a NaN into the next row, for they read past their depth.
    by_torch = _compute(_widened(poisoned))

    assert value == 1e20 or not found[1].isfinite().all(), "the poison works"
    for index, (mine, theirs) in enumerate(zip(found, by_torch, strict=True)):
        assert torch.equal(mine.isfinite(), theirs.isfinite())
        if index != WEIGHTS:
            assert torch.equal(mine.isnan(), theirs.isnan())
            assert torch.equal(mine[mine.isinf()].float(), theirs[theirs.isinf()])

    others = torch.arange(60) != POISON
    other_experts = [expert for expert in range(3) if expert not in CASE.chosen[POISON]]
    untouched = (others, others, others.repeat_interleave(2), other_experts, other_experts)
    assert len(other_experts) == 1
    for mine, before, where in zip(found, clean, untouched, strict=True):
        assert torch.equal(mine[where], before[where])


def _odd(tensor: Tensor) -> Tensor:
    """Copy to where nothing is aligned."""
    room = torch.empty(tensor.numel() + 3, dtype=tensor.dtype)
    return room[3:].view(tensor.shape).copy_(tensor)


def _strided(tensor: Tensor) -> Tensor:
    """Copy so that neighbours lie three values apart."""
    room = torch.empty(*tensor.shape, 3, dtype=tensor.dtype)
    return room[..., 1].copy_(tensor)


def _turned(tensor: Tensor) -> Tensor:
    """Copy so that the last dimension is the outermost in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def _apart(tensor: Tensor) -> Tensor:
    """Copy so that something else lies between the items of the first dimension."""
    room = torch.full((len(tensor), 2, *tensor.shape[1:]), -1).to(tensor.dtype)
    return room[:, 0].copy_(tensor)


@each_compiled
@pytest.mark.parametrize("place", [_odd, _strided, _turned, _apart])
def test_bits_stay_the_same_when_tensors_lie_elsewhere(place: Callable[[Tensor], Tensor], computer: Computer) -> None:
    inputs = draw_mixture(CASE, computer.dtype)
    permutation = Permutation(**{name: place(each) for name, each in vars(inputs.permutation).items()})
    leaves = [place(leaf.detach()).requires_grad_() for leaf in inputs.leaves]
    moved = MixtureInputs(*leaves, permutation, place(inputs.grad_TD))
    assert _equal(_compute(moved), _compute(inputs))


@each_compiled
def test_one_number_seen_everywhere_is_read_as_such_when_expanded(computer: Computer) -> None:
    inputs = draw_mixture(CASE, computer.dtype)
    half = torch.tensor([0.5])
    expanded = replace(
        inputs, weights_N=half.expand(120), grad_TD=torch.ones(1, 1, dtype=computer.dtype).expand(60, 72)
    )
    written_out = replace(expanded, weights_N=expanded.weights_N.clone(), grad_TD=expanded.grad_TD.clone())
    for each in (expanded, written_out):
        each.weights_N.requires_grad_()
    assert _equal(_compute(expanded), _compute(written_out))
