"""Experts in waves against the same experts at hand: the same bits, whatever comes when and wherever it lies."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.ops.mixture import mix_experts
from moesaic.ops.paged_mixture import mix_in_waves
from moesaic.ops.permutation import Permutation
from moesaic.ops.quant import QuantisedExperts, quantise_experts
from moesaic.ops.quantised_mixture import mix_experts_quantised
from moesaic.testing.cases import MIXTURE_CASES, MixtureCase, choose_at_random, draw_mixture
from tests.ops.computer import each_compiled, each_computer, each_quantising
from tests.ops.conftest import Computer
from tests.ops.slots import Experts, Groups, Pool, deal

each_width = pytest.mark.parametrize("bits", [8, 4])
SMALL = MixtureCase("quick, with tails everywhere", 40, 24, 5, choose_at_random(20, 5, 2))
QUANTISED_CASES = {
    name: MIXTURE_CASES[name]
    for name in (
        "one token",
        "one expert takes all",
        "all choose all",
        "most idle",
        "rows beside a tile",
        "values beyond a strip",
        "one value",
        "uneven tokens",
        "cut into segments",
        "no rows",
        "no tokens",
    )
}


@dataclass(frozen=True)
class Problem:
    """A mixture whose experts are at hand."""

    hidden_TD: Tensor
    weights: Tensor
    experts: Experts
    routing: Permutation | Tensor

    def mix_at_once(self) -> Tensor:
        """Mix in one call."""
        if isinstance(self.experts, QuantisedExperts):
            return mix_experts_quantised(self.hidden_TD, self.weights, self.experts, self.routing)
        return mix_experts(self.hidden_TD, self.weights, *self.experts, self.routing)

    def mix_in_waves(self, pool: Pool, groups: Groups) -> Tensor:
        """Mix as groups of experts come to a pool."""
        return mix_in_waves(self.hidden_TD, self.weights, pool.slots, self.routing, pool.bring(groups))


def _draw(case: MixtureCase, computer: Computer, bits: int | None = None) -> Problem:
    inputs = draw_mixture(case, computer.dtype)
    hidden_TD, weights_N, gate_up, down = (leaf.detach() for leaf in inputs.leaves)
    experts = (gate_up, down) if bits is None else quantise_experts(gate_up, down, bits)
    return Problem(hidden_TD, weights_N, experts, inputs.permutation)


def _check_waves(problem: Problem, num_experts: int) -> None:
    expected = problem.mix_at_once()
    for num_waves in (1, 2, num_experts + 1):
        groups = deal(num_experts, num_waves)
        pool = Pool(problem.experts, list(reversed(range(max(map(len, groups)) + 1))))
        assert torch.equal(problem.mix_in_waves(pool, groups), expected), f"{num_waves} waves"


@each_computer
@pytest.mark.parametrize("name", MIXTURE_CASES)
def test_bits_are_those_of_one_call_when_the_case_is(name: str, computer: Computer) -> None:
    case = MIXTURE_CASES[name]
    _check_waves(_draw(case, computer), case.num_experts)


@each_width
@each_quantising
@pytest.mark.parametrize("name", QUANTISED_CASES)
def test_bits_are_those_of_one_call_when_quantised_and_the_case_is(name: str, computer: Computer, bits: int) -> None:
    case = MIXTURE_CASES[name]
    _check_waves(_draw(case, computer, bits), case.num_experts)


@dataclass(frozen=True)
class Visit:
    """Who comes when, and where to."""

    case: MixtureCase
    groups: Groups
    order: list[int]
    gap_bytes: int


@st.composite
def _draw_visit(draw: st.DrawFn) -> Visit:
    num_experts = draw(st.integers(1, 6))
    experts = st.lists(st.integers(0, num_experts - 1), max_size=4).map(tuple)
    chosen = tuple(draw(st.lists(experts, max_size=40)))
    case = MixtureCase("drawn", draw(st.integers(1, 70)), draw(st.integers(1, 70)), num_experts, chosen)
    waves = draw(st.lists(st.integers(0, 3), min_size=num_experts, max_size=num_experts))
    groups = [[expert for expert in range(num_experts) if waves[expert] == wave] for wave in range(4)]
    order = draw(st.permutations(range(max(map(len, groups)) + draw(st.integers(0, 2)))))
    return Visit(case, groups, order, 64 * draw(st.integers(0, 2)))


@pytest.mark.parametrize("bits", [None, 8, 4])
@each_quantising
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(visit=_draw_visit())
def test_bits_are_those_of_one_call_when_waves_and_slots_are_drawn(
    visit: Visit, computer: Computer, bits: int | None
) -> None:
    problem = _draw(visit.case, computer, bits)
    pool = Pool(problem.experts, visit.order, visit.gap_bytes)
    assert torch.equal(problem.mix_in_waves(pool, visit.groups), problem.mix_at_once())


@pytest.mark.parametrize("bits", [None, 8, 4])
@each_compiled
def test_bits_are_those_of_one_call_when_slots_are_aligned_to_nothing(bits: int | None, computer: Computer) -> None:
    problem = _draw(SMALL, computer, bits)
    pool = Pool(problem.experts, range(3), gap_bytes=4)
    assert torch.equal(problem.mix_in_waves(pool, deal(5, 2)), problem.mix_at_once())


@pytest.mark.parametrize("bits", [None, 8, 4])
@each_quantising
def test_bits_are_those_of_one_call_when_expert_ids_are_given(bits: int | None, computer: Computer) -> None:
    grouped = _draw(SMALL, computer, bits)
    ids_TK = torch.tensor(SMALL.chosen)
    by_ids = Problem(grouped.hidden_TD, grouped.weights.view(ids_TK.shape), grouped.experts, ids_TK)
    found = by_ids.mix_in_waves(Pool(grouped.experts, range(2)), deal(5, 3))
    assert torch.equal(found, grouped.mix_at_once())


@each_quantising
def test_idle_experts_do_not_matter_when_they_come_twice_or_never(computer: Computer) -> None:
    case = MixtureCase("the last two experts are idle", 40, 24, 5, choose_at_random(20, 3, 2))
    problem = _draw(case, computer)
    pool = Pool(problem.experts, range(2))
    found = problem.mix_in_waves(pool, [[], [3], [0, 3], [], [1, 2], [3], []])
    assert torch.equal(found, problem.mix_at_once())


@each_quantising
def test_result_is_zero_when_no_wave_comes_and_none_is_needed(computer: Computer) -> None:
    for num_tokens in (0, 3):
        problem = _draw(MixtureCase("", 8, 6, 3, ((),) * num_tokens), computer)
        pool = Pool(problem.experts, range(1))
        assert torch.equal(problem.mix_in_waves(pool, []), torch.zeros(num_tokens, 8, dtype=computer.dtype))
        nothing = torch.empty(num_tokens, 0, dtype=torch.int64)
        by_ids = Problem(problem.hidden_TD, torch.empty(num_tokens, 0), problem.experts, nothing)
        assert torch.equal(by_ids.mix_in_waves(pool, []), torch.zeros(num_tokens, 8, dtype=computer.dtype))


@each_quantising
def test_a_wave_is_drawn_only_when_the_one_before_is_computed(computer: Computer) -> None:
    problem = _draw(SMALL, computer)
    lists = [torch.tensor([e if e == wave else -1 for e in range(5)]) for wave in range(5)]
    assert isinstance(problem.experts, tuple)
    gate_up, down = (field.clone() for field in problem.experts)

    def spoil() -> Iterator[Tensor]:
        for wave, places_E in enumerate(lists):
            yield places_E
            gate_up[wave].fill_(torch.nan)
            down[wave].fill_(torch.nan)

    found = mix_in_waves(problem.hidden_TD, problem.weights, (gate_up, down), problem.routing, spoil())
    assert gate_up.isnan().all()
    assert torch.equal(found, problem.mix_at_once())
    assert torch.equal(
        mix_in_waves(problem.hidden_TD, problem.weights, problem.experts, problem.routing, lists), found
    ), "a list is an iterable, too"


@each_quantising
def test_strided_arguments_are_read_as_they_are_when_they_are_strided(computer: Computer) -> None:
    problem = _draw(SMALL, computer)
    turned = torch.empty(40, 20, dtype=computer.dtype).t().copy_(problem.hidden_TD)
    weights_N = torch.stack([problem.weights, problem.weights], dim=1)[:, 0].double()
    places_E = torch.stack([torch.arange(5), torch.full((5,), -1)], dim=1)[:, 0]
    found = mix_in_waves(turned, weights_N, problem.experts, problem.routing, [places_E])
    assert torch.equal(found, problem.mix_at_once())
