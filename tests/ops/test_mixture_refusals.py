"""What the mixture does not take: every argument in turn, each refused with its name, and never a crash."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.expert_mlp import expert_mlp
from moesaic.ops.mixture import mix_experts
from moesaic.testing.cases import MixtureCase, MixtureInputs, choose_at_random, draw_mixture
from tests.ops.computer import each_compiled, each_computer
from tests.ops.conftest import Computer

CASE = MixtureCase("", 8, 6, 3, choose_at_random(5, 3, 2))  # N = 10
Change = Callable[[Tensor], Tensor]


def _mix(inputs: MixtureInputs) -> Tensor:
    return mix_experts(*inputs.leaves, inputs.permutation)


def _change(inputs: MixtureInputs, name: str, change: Change) -> MixtureInputs:
    """Return the inputs with one tensor changed, 'routing.x' being one of the permutation's."""
    outer, _, inner = name.partition(".")
    if name == "weights":
        return replace(inputs, weights_N=change(inputs.weights_N.detach()))
    if not inner:
        return replace(inputs, **{outer: change(getattr(inputs, outer).detach())})
    permutation = inputs.permutation
    return replace(inputs, permutation=replace(permutation, **{inner: change(getattr(permutation, inner))}))


SHAPES = {
    "hidden_TD": (lambda x: x[0], "(any, any)"),
    "down": (lambda x: x[..., 0], "(any, 8, any)"),
    "gate_up": (lambda x: x[:, 1:], "(3, 12, 8)"),
    "weights": (lambda x: x[1:], "(10)"),
    "routing.inverse_N": (lambda x: x[1:], "(10)"),
    "routing.starts_T": (lambda x: x[1:], "(5)"),
    "routing.counts_E": (lambda x: x.view(3, 1), "(3)"),
    "routing.token_ids_N": (lambda x: x.view(2, 5), "(any)"),
}


@each_computer
@pytest.mark.parametrize("name", SHAPES)
def test_shape_is_refused_with_the_name_when_it_is_another(name: str, computer: Computer) -> None:
    change, accepted = SHAPES[name]
    inputs = _change(draw_mixture(CASE, computer.dtype), name, change)
    outer, _, inner = name.partition(".")
    found = getattr(inputs.permutation, inner) if inner else getattr(inputs, {"weights": "weights_N"}.get(outer, outer))
    with _refusal(name, f"has the shape {tuple(found.shape)}", f"give it the shape {accepted}"):
        _mix(inputs)
    _run_something(computer)


@each_computer
@pytest.mark.parametrize("name", ["down", "gate_up", *(name for name in SHAPES if "." in name)])
def test_dtype_is_refused_with_the_name_when_it_is_another(name: str, computer: Computer) -> None:
    wanted = "int64" if "." in name else str(computer.dtype).removeprefix("torch.")
    inputs = _change(draw_mixture(CASE, computer.dtype), name, lambda x: x.to(torch.int32))
    with _refusal(name, "holds int32", f"give it as {wanted}"):
        _mix(inputs)
    _run_something(computer)


@each_computer
@pytest.mark.parametrize("name", ["hidden_TD", "weights"])
def test_whole_numbers_are_refused_when_floating_ones_are_asked_for(name: str, computer: Computer) -> None:
    inputs = _change(draw_mixture(CASE, computer.dtype), name, lambda x: x.long())
    with _refusal(name, "holds torch.int64", "give it in a floating dtype"):
        _mix(inputs)
    _run_something(computer)


@each_computer
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "hidden_TD"])
def test_device_is_refused_with_the_name_when_it_is_another(name: str, computer: Computer) -> None:
    inputs = _change(draw_mixture(CASE, computer.dtype), name, lambda x: x.to("meta"))
    with _refusal(name, "is on meta", "bring it to cpu, where the other tensors are"):
        _mix(inputs)
    _run_something(computer)


def _set(at: int, value: int) -> Change:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed[at] = value
        return changed

    return change


BAD_ROUTINGS = {
    "counts that sum to less": ("counts_E", _set(1, 0)),
    "counts that sum to more": ("counts_E", _set(1, 9)),
    "a negative count": ("counts_E", lambda counts: torch.tensor([-2, 6, 6])),
    "counts that overflow": ("counts_E", lambda counts: torch.tensor([2**62, 2**62, 2**63 - 1])),
    "a token below the first": ("token_ids_N", _set(3, -1)),
    "a token beyond the last": ("token_ids_N", _set(9, 5)),
    "a row below the first": ("inverse_N", _set(0, -1)),
    "a row beyond the last": ("inverse_N", _set(9, 10)),
    "starts that do not ascend": ("starts_T", _set(2, 9)),
    "a start beyond the last": ("starts_T", _set(4, 11)),
    "a start below the first": ("starts_T", _set(0, -1)),
    "pairs before the first token": ("starts_T", _set(0, 1)),
}


@each_compiled
@pytest.mark.parametrize("name", BAD_ROUTINGS)
def test_routing_is_refused_when_it_has(name: str, computer: Computer) -> None:
    field, change = BAD_ROUTINGS[name]
    inputs = _change(draw_mixture(CASE, computer.dtype), f"routing.{field}", change)
    with pytest.raises(UnsupportedError, match="does not fit the rows") as caught:
        _mix(inputs)
    assert caught.value.hint == "make it with group_by_expert, of tokens that ascend and ids in range"


IDS = torch.tensor(CASE.chosen)  # [5, 2]


@each_computer
@pytest.mark.parametrize(
    ("ids", "weights", "told"),
    [
        (IDS[1:], None, r"routing has the shape \(4, 2\)"),
        (IDS.flatten(), None, r"routing has the shape \(10,\)"),
        (IDS.int(), None, "routing holds int32"),
        (IDS.to("meta"), None, "routing is on meta"),
        (IDS, torch.ones(10), r"weights has the shape \(10,\)"),
        (IDS, torch.ones(5, 1), r"weights has the shape \(5, 1\)"),
        (IDS, torch.ones(5, 2).long(), "weights holds torch.int64"),
    ],
)
def test_expert_ids_are_refused_when_they_do_not_fit(
    ids: Tensor, weights: Tensor | None, told: str, computer: Computer
) -> None:
    inputs = draw_mixture(CASE, computer.dtype)
    weights = inputs.weights_N.view(5, 2) if weights is None else weights
    with pytest.raises(UnsupportedError, match=told):
        mix_experts(inputs.hidden_TD, weights, inputs.gate_up, inputs.down, ids)
    _run_something(computer)


@each_compiled
@pytest.mark.parametrize("bad", [-1, 3])
def test_expert_ids_are_refused_when_one_is_out_of_range(bad: int, computer: Computer) -> None:
    inputs = draw_mixture(CASE, computer.dtype)
    with pytest.raises(UnsupportedError, match="does not fit the rows"):
        mix_experts(
            inputs.hidden_TD, inputs.weights_N.view(5, 2), inputs.gate_up, inputs.down, IDS.masked_fill(IDS == 2, bad)
        )


@each_compiled
def test_routing_is_refused_when_there_are_no_tokens_for_its_rows(computer: Computer) -> None:
    inputs = draw_mixture(CASE, computer.dtype)
    nobody = replace(inputs.permutation, starts_T=inputs.permutation.starts_T[:0])
    with pytest.raises(UnsupportedError, match="does not fit the rows"):
        _mix(replace(inputs, hidden_TD=inputs.hidden_TD.detach()[:0], permutation=nobody))


@each_computer
@pytest.mark.parametrize("counts", [[1, 2], [3, 3], [-1, 6], [6, -1]])
def test_counts_of_plain_rows_are_refused_when_they_do_not_sum(counts: list[int], computer: Computer) -> None:
    rows_ND, gate_up, down = torch.ones(5, 4), torch.ones(2, 6, 4), torch.ones(2, 4, 3)
    with pytest.raises(UnsupportedError, match="counts_E") as caught:
        expert_mlp(*(each.to(computer.dtype) for each in (rows_ND, gate_up, down)), torch.tensor(counts))
    assert caught.value.hint
    _run_something(computer)


def _refusal(name: str, found: str, hint: str) -> Any:
    class Refusal:
        """Expect an error whose text and hint say this."""

        def __enter__(self) -> None:
            self.expected = pytest.raises(UnsupportedError)
            self.caught = self.expected.__enter__()

        def __exit__(self, *failure: Any) -> bool:
            done = self.expected.__exit__(*failure)
            assert self.caught.value.text.startswith(f"{name} {found}"), self.caught.value.text
            assert self.caught.value.hint == hint
            return done

    return Refusal()


def _run_something(computer: Computer) -> None:
    """Compute once, for the fixture watches that the computer of a test did."""
    assert _mix(draw_mixture(CASE, computer.dtype)).dtype == computer.dtype
