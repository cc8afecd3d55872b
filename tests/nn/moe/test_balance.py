"""Balance losses and the loss-free bias against their formulas, and by hand."""

import math

import pytest
import torch

from moesaic.nn.moe.balance import balance_loss, sequence_balance_loss, update_selection_bias, z_loss
from moesaic.nn.moe.router import ROUTERS, Routing
from tests.nn.moe.routed import route_logits


def _routing(logits: list[list[float]], choices: list[list[int]]) -> Routing:
    """Make a routing with softmax scores and choices of our own."""
    logits_TE = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([token for token, experts in enumerate(choices) for _ in experts], dtype=torch.int64)
    experts = torch.tensor([expert for each in choices for expert in each], dtype=torch.int64)
    ones = torch.ones(len(tokens), dtype=torch.float64)
    return Routing(tokens, experts, ones, tokens, experts, logits_TE.softmax(-1), logits_TE)


@pytest.mark.parametrize("num_experts", [1, 2, 5, 7])
@pytest.mark.parametrize("per_token", [1, 2])
def test_balance_loss_is_exactly_one_when_load_is_even(num_experts: int, per_token: int) -> None:
    per_token = min(per_token, num_experts)
    choices = [[(token + rank) % num_experts for rank in range(per_token)] for token in range(num_experts)]
    logits = torch.randn(num_experts, num_experts).tolist()
    assert balance_loss(_routing(logits, choices), num_experts).item() == pytest.approx(1.0, abs=1e-15)


def test_balance_loss_is_one_when_scores_are_even_and_load_is_not() -> None:
    routing = _routing([[0.0] * 4] * 3, [[0], [0], [0]])
    assert balance_loss(routing, 4).item() == pytest.approx(1.0, abs=1e-15)


def test_balance_loss_is_the_number_of_experts_when_one_takes_all() -> None:
    routing = route_logits([[100.0, 0.0, 0.0, 0.0, 0.0]] * 3, num_experts_per_tok=1)
    assert balance_loss(routing, 5).item() == 5.0


def test_balance_loss_is_experts_over_choices_when_the_same_ones_take_all() -> None:
    routing = route_logits([[100.0, 100.0, 0.0, 0.0, 0.0]] * 3, num_experts_per_tok=2)
    assert balance_loss(routing, 5).item() == 2.5


def test_balance_loss_is_below_one_when_load_and_scores_disagree() -> None:
    # Two tokens lean a little to expert 0, one wholly to expert 1: loads (2/3, 1/3), scores near (1/3, 2/3).
    routing = route_logits([[0.001, 0.0], [0.001, 0.0], [0.0, 100.0]], num_experts_per_tok=1)
    assert 0 < balance_loss(routing, 2).item() == pytest.approx(2 * (2 / 9 + 2 / 9), abs=1e-3)


def test_balance_loss_equals_the_sum_by_hand_when_load_is_uneven() -> None:
    # Scores (3/4, 1/4) and (1/2, 1/2); expert 0 twice, expert 1 once: 2 (2/3 5/8 + 1/3 3/8).
    routing = _routing([[math.log(3), 0.0], [0.0, 0.0]], [[0], [0, 1]])
    assert balance_loss(routing, 2).item() == pytest.approx(2 * (2 / 3 * 5 / 8 + 1 / 3 * 3 / 8))


def test_balance_loss_counts_a_choice_when_it_is_dropped() -> None:
    logits = [[5.0, 0.0]] * 4
    limited = route_logits(logits, num_experts_per_tok=1, eval_capacity_factor=0.5)
    unlimited = route_logits(logits, num_experts_per_tok=1)
    assert len(limited.expert_ids_N) < len(unlimited.expert_ids_N)
    assert torch.equal(balance_loss(limited, 2), balance_loss(unlimited, 2))


def test_balance_loss_pushes_scores_of_the_crowded_expert_down_when_load_is_uneven() -> None:
    routing = _routing([[1.0, 0.0], [1.0, 0.0]], [[0], [0]])
    (gradient,) = torch.autograd.grad(balance_loss(routing, 2), routing.logits_TE)
    assert bool((gradient[:, 0] > 0).all())
    assert bool((gradient[:, 1] < 0).all())


def test_sequence_balance_loss_is_one_when_each_sequence_is_even() -> None:
    routing = _routing(torch.randn(4, 2).tolist(), [[0], [1], [1], [0]])
    loss = sequence_balance_loss(routing, 2, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(1.0, abs=1e-15)


def test_sequence_balance_loss_sees_what_the_batch_hides_when_sequences_specialise() -> None:
    routing = _routing([[9.0, -9.0]] * 2 + [[-9.0, 9.0]] * 2, [[0], [0], [1], [1]])
    assert balance_loss(routing, 2).item() == pytest.approx(1.0)
    assert sequence_balance_loss(routing, 2, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(2.0)


def test_sequence_balance_loss_is_the_mean_over_sequences_when_lengths_differ() -> None:
    logits, choices = torch.randn(5, 3).tolist(), [[0, 1], [2, 0], [1, 2], [0, 2], [0, 1]]
    routing = _routing(logits, choices)
    apart = [_routing(logits[:1], choices[:1]), _routing(logits[1:], choices[1:])]
    expected = sum(balance_loss(each, 3).item() for each in apart) / 2
    # Sequence 1 holds nothing, and does not count.
    loss = sequence_balance_loss(routing, 3, torch.tensor([0, 2, 2, 2, 2]))
    assert loss.item() == pytest.approx(expected)


def test_sequence_balance_loss_equals_balance_loss_when_there_is_one_sequence() -> None:
    routing = route_logits(torch.randn(6, 4))
    whole = sequence_balance_loss(routing, 4, torch.zeros(6, dtype=torch.int64))
    assert whole.item() == pytest.approx(balance_loss(routing, 4).item())


def test_z_loss_is_the_squared_log_of_experts_when_logits_are_zero() -> None:
    assert z_loss(torch.zeros(3, 7)).item() == pytest.approx(math.log(7) ** 2)


def test_z_loss_equals_the_mean_by_hand_when_logits_differ() -> None:
    logits_TE = torch.tensor([[math.log(3), math.log(2)], [0.0, 0.0]])
    assert z_loss(logits_TE).item() == pytest.approx((math.log(5) ** 2 + math.log(2) ** 2) / 2)


@pytest.mark.parametrize("kind", ROUTERS)
def test_losses_are_zero_with_a_gradient_when_there_are_no_tokens(kind: str) -> None:
    per_token = {"switch": 1}.get(kind, 2)
    routing = route_logits(torch.zeros(0, 4).requires_grad_(), router=kind, num_experts_per_tok=per_token)
    none = torch.zeros(0, dtype=torch.int64)
    losses = (balance_loss(routing, 4), sequence_balance_loss(routing, 4, none), z_loss(routing.logits_TE))
    assert [float(loss.detach()) for loss in losses] == [0.0, 0.0, 0.0]
    assert all(loss.requires_grad for loss in losses)


def test_bias_moves_by_the_sign_of_the_shortfall_when_updated() -> None:
    bias_E = torch.tensor([0.0, 0.5, -0.25, 0.125])
    update_selection_bias(bias_E, torch.tensor([10, 2, 6, 6]), 0.125)
    assert bias_E.tolist() == [-0.125, 0.625, -0.25, 0.125]


def test_bias_stays_when_load_is_even_or_nothing_was_routed() -> None:
    bias_E = torch.tensor([0.5, -0.5])
    update_selection_bias(bias_E, torch.tensor([3, 3]), 0.125)
    update_selection_bias(bias_E, torch.tensor([0, 0]), 0.125)
    assert bias_E.tolist() == [0.5, -0.5]
