"""What experts in waves do not take: every argument in turn, each refused with its name, and the waves closed."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.paged_mixture import mix_in_waves
from moesaic.ops.quant import QuantisedExperts, quantise_experts
from moesaic.testing.cases import MixtureCase, choose_at_random, draw_mixture
from tests.ops.computer import each_compiled, each_quantising
from tests.ops.conftest import Computer

CASE = MixtureCase("", 8, 6, 3, choose_at_random(5, 3, 2))  # N = 10
ALL = torch.arange(3)
IDS = torch.tensor(CASE.chosen)


class Waves:
    """Waves that tell how far they were drawn and whether they were closed."""

    def __init__(self, *waves: Tensor | BaseException) -> None:
        self._waves = iter(waves)
        self.is_closed = False

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        wave = next(self._waves)
        if isinstance(wave, BaseException):
            raise wave
        return wave

    def close(self) -> None:
        """Remember it."""
        self.is_closed = True


def _arguments(dtype: torch.dtype) -> dict[str, Any]:
    inputs = draw_mixture(CASE, dtype)
    hidden_TD, weights, gate_up, down = (leaf.detach() for leaf in inputs.leaves)
    return {"hidden_TD": hidden_TD, "weights": weights, "experts": (gate_up, down), "routing": inputs.permutation}


def _refuse(arguments: dict[str, Any], waves: Waves, told: str, hint: str = "") -> None:
    with pytest.raises(UnsupportedError, match=told) as caught:
        mix_in_waves(**arguments, waves=waves)
    assert caught.value.hint.startswith(hint)
    assert waves.is_closed


def _compute(computer: Computer) -> None:
    """Compute once, for the fixture watches that the computer of a test did."""
    waves = Waves(ALL)
    assert mix_in_waves(**_arguments(computer.dtype), waves=waves).isfinite().all()
    assert not waves.is_closed, "nobody who has told everything is closed"


ONCE = "bring each expert that has rows in exactly one wave"
WAVES: dict[str, tuple[list[Any], str, str]] = {
    "no wave": ([], "expert 0 has rows and is in no wave", ONCE),
    "an expert too few": ([[0, -1, -1], [-1, -1, 2]], "expert 1 has rows and is in no wave", ONCE),
    "an expert twice": ([[0, 1, -1], [-1, 2, 0]], "expert 1 is in two waves", ONCE),
    "an expert again after all": ([[0, 1, 2], [-1, -1, 0]], "expert 2 is in two waves", ONCE),
    "a slot too many": ([[0, 1, 3]], "places_E, a wave, has expert 2 in slot 3", "give -1, or one of 3 slots"),
    "a slot below": ([[0, -2, 1]], "places_E, a wave, has expert 1 in slot -2", "give -1, or one of 3 slots"),
    "numbers for more experts": ([[0, 1, 2, -1]], r"places_E, a wave, has the shape \(4,\)", r"give it the shape (3)"),
    "numbers for fewer experts": ([[0, -1, -1], [1, 2]], r"places_E, a wave, has the shape \(2,\)", ""),
    "one number": ([0], r"places_E, a wave, has the shape \(\)", ""),
}


@each_quantising
@pytest.mark.parametrize("name", WAVES)
def test_waves_are_refused_and_closed_when_they_hold(name: str, computer: Computer) -> None:
    waves, told, hint = WAVES[name]
    _refuse(_arguments(computer.dtype), Waves(*map(torch.tensor, waves)), told, hint)
    _compute(computer)


@each_quantising
def test_waves_are_refused_when_their_dtype_or_device_is_another(computer: Computer) -> None:
    arguments = _arguments(computer.dtype)
    _refuse(arguments, Waves(ALL.int()), "places_E, a wave, holds int32", "give it as int64")
    _refuse(arguments, Waves(ALL.to("meta")), "places_E, a wave, is on meta", "bring it to cpu")
    _compute(computer)


@each_quantising
@pytest.mark.parametrize(
    ("ids", "waves", "told"),
    [
        (IDS.masked_fill(IDS == 2, 3), [ALL], "routing holds expert ids from 0 to 3, the waves are of 3 experts"),
        (IDS.masked_fill(IDS == 0, -1), [ALL], "routing holds expert ids from -1 to 2, the waves are of 3 experts"),
        (IDS, [], "routing holds expert ids from 0 to 2, the waves are of 0 experts"),
        (IDS, [torch.tensor(0)], r"places_E, a wave, has the shape \(\)"),
        (IDS.int(), [ALL], "routing holds int32"),
        (IDS[1:], [ALL], r"routing has the shape \(4, 2\)"),
    ],
)
def test_expert_ids_are_refused_when_they_do_not_fit(
    ids: Tensor, waves: list[Tensor], told: str, computer: Computer
) -> None:
    arguments = _arguments(computer.dtype)
    arguments |= {"routing": ids, "weights": arguments["weights"].view(5, 2)}
    _refuse(arguments, Waves(*waves), told)
    _compute(computer)


@each_quantising
def test_permutation_is_refused_when_its_counts_do_not_sum(computer: Computer) -> None:
    arguments = _arguments(computer.dtype)
    arguments["routing"] = replace(arguments["routing"], counts_E=torch.tensor([9, 9, 9]))
    _refuse(arguments, Waves(ALL), "counts_E .*does not fit", "make it with group_by_expert")
    _compute(computer)


@each_compiled
def test_permutation_is_refused_when_it_points_elsewhere(computer: Computer) -> None:
    arguments = _arguments(computer.dtype)
    wrong_N = arguments["routing"].token_ids_N.clone()
    wrong_N[0] = 5
    arguments["routing"] = replace(arguments["routing"], token_ids_N=wrong_N)
    _refuse(arguments, Waves(ALL), "does not fit the rows")


Change = Callable[[Tensor], Tensor]


def _turn(tensor: Tensor) -> Tensor:
    """Copy so that the last dimension is the outermost in memory."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def _repeat(tensor: Tensor) -> Tensor:
    """Show the first slot three times."""
    return tensor[:1].expand(tensor.shape)


@each_quantising
@pytest.mark.parametrize("which", ["gate_up", "down"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x[1:], "has the shape"),
        (lambda x: x[0], "has the shape"),
        (lambda x: x.double(), "holds float64"),
        (lambda x: x.to("meta"), "is on meta"),
        (_turn, "has the strides"),
        (_repeat, "has the strides"),
    ],
)
def test_slots_are_refused_with_the_name_when_they_are_others(
    which: str, change: Change, told: str, computer: Computer
) -> None:
    arguments = _arguments(computer.dtype)
    gate_up, down = arguments["experts"]
    arguments["experts"] = (change(gate_up), down) if which == "gate_up" else (gate_up, change(down))
    # Their number is that of down, so gate_up has the wrong one.
    name = "gate_up" if told == "has the shape" and change(down).ndim == 3 else which
    _refuse(arguments, Waves(ALL), f"{name} {told}")
    _compute(computer)


@each_quantising
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("field", [each.name for each in fields(QuantisedExperts) if "width" not in each.name])
def test_quantised_slots_are_refused_with_the_name_when_they_are_others(
    field: str, bits: int, computer: Computer
) -> None:
    arguments = _arguments(computer.dtype)
    gate_up, down = arguments["experts"]
    experts = quantise_experts(gate_up, down, bits)

    def refuse(change: Change, told: str) -> None:
        changed: dict[str, Any] = {field: change(getattr(experts, field))}
        _refuse(arguments | {"experts": replace(experts, **changed)}, Waves(ALL), told)

    refuse(lambda x: x[:, :1], f"experts.{field} has the shape")
    refuse(lambda x: x.to(torch.int16), f"experts.{field} (holds int16|has the shape)")
    refuse(_turn, f"experts.{field} has the strides")
    refuse(_repeat, f"experts.{field} has the strides")
    refuse(lambda x: x.to("meta"), "is on cpu" if field == "gate_up" else f"experts.{field} is on meta")
    _compute(computer)


@each_quantising
def test_tokens_and_weights_are_refused_when_they_are_others(computer: Computer) -> None:
    floats = _arguments(computer.dtype)
    gate_up, down = floats["experts"]
    for arguments in (floats, floats | {"experts": quantise_experts(gate_up, down, 8)}):
        hidden_TD, weights = arguments["hidden_TD"], arguments["weights"]
        _refuse(arguments | {"hidden_TD": hidden_TD[:, 1:]}, Waves(ALL), "has the shape")
        _refuse(arguments | {"hidden_TD": hidden_TD.long()}, Waves(ALL), "hidden_TD holds torch.int64")
        _refuse(arguments | {"weights": weights[1:]}, Waves(ALL), r"weights has the shape \(9,\)")
        _refuse(arguments | {"weights": weights.long()}, Waves(ALL), "weights holds torch.int64")
    _compute(computer)


@each_quantising
def test_gradients_are_refused_when_asked_for(computer: Computer) -> None:
    arguments = _arguments(computer.dtype)
    gate_up, down = arguments["experts"]
    for asking in (
        {"hidden_TD": arguments["hidden_TD"].clone().requires_grad_()},
        {"weights": arguments["weights"].clone().requires_grad_()},
        {"experts": (gate_up.clone().requires_grad_(), down)},
        {"experts": (gate_up, down.clone().requires_grad_())},
    ):
        told = "experts that come in waves have no gradients"
        _refuse(arguments | asking, Waves(ALL), told, "call them under torch.no_grad()")
        with torch.no_grad():
            assert torch.equal(mix_in_waves(**arguments | asking, waves=[ALL]), mix_in_waves(**arguments, waves=[ALL]))
    quantised = {"experts": quantise_experts(gate_up, down, 8), "weights": asking["experts"][1].sum().expand(10)}
    _refuse(arguments | quantised, Waves(ALL), told)


@each_quantising
@pytest.mark.parametrize("failure", [OSError("the disk is gone"), KeyboardInterrupt()])
def test_failure_of_the_waves_is_passed_on_and_they_are_closed(failure: BaseException, computer: Computer) -> None:
    waves = Waves(torch.tensor([0, 1, -1]), failure)
    with pytest.raises(type(failure)):
        mix_in_waves(**_arguments(computer.dtype), waves=waves)
    assert waves.is_closed
    with pytest.raises(OSError, match="no such page"):  # map has no `close`
        mix_in_waves(**_arguments(computer.dtype), waves=map(_fail, range(1)))
    _compute(computer)


def _fail(_: int) -> Tensor:
    raise OSError("no such page")
