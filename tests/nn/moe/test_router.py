"""Routing as exact index arithmetic: every router against the oracle of lists and loops, then by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.nn.moe.router import ROUTERS
from tests.nn.moe.routed import identity_router, pairs_of, route_logits, router_config
from tests.nn.moe.router_oracle import route

CAPACITIES = st.sampled_from([None, None, 0.25, 0.5, 1.0, 1.1, 1.25, 2.0])


@st.composite
def _draw_case(draw: st.DrawFn, kind: str) -> tuple[dict[str, Any], Tensor]:
    """Draw a router's settings and logits: few levels, so that ties abound; at times one expert takes all."""
    groups = draw(st.sampled_from([1, 1, 2, 3])) if kind in ("softmax", "sigmoid") else 1
    experts = groups * draw(st.sampled_from([1, 2, 3, 7] if kind != "gshard" else [2, 3, 7]))
    chosen_groups = draw(st.integers(1, groups))
    reachable = chosen_groups * experts // groups
    per_token = {"switch": 1, "gshard": 2}.get(kind) or draw(
        st.sampled_from(sorted({1, (reachable + 1) // 2, reachable}))
    )
    settings = {
        "router": kind,
        "num_experts": experts,
        "per_token": per_token,
        "norm_topk_prob": draw(st.booleans()),
        "n_group": groups,
        "topk_group": chosen_groups,
        "capacity_factor": draw(CAPACITIES),
        "eval_capacity_factor": draw(CAPACITIES),
    }
    level = st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.5]) if draw(st.booleans()) else st.just(1.0)
    rows = draw(st.lists(st.lists(level, min_size=experts, max_size=experts), max_size=8))
    logits_TE = torch.tensor(rows, dtype=torch.float32).view(-1, experts)
    if draw(st.booleans()):
        logits_TE[:, draw(st.integers(0, experts - 1))] += 5.0
    return settings, logits_TE


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("kind", ROUTERS)
@settings(max_examples=60)
@given(data=st.data())
def test_routing_equals_lists_and_loops_when_logits_tie(kind: str, training: bool, data: st.DataObject) -> None:
    changes, logits_TE = data.draw(_draw_case(kind))
    config = router_config(**changes)
    router = identity_router(config).train(training)
    biases = [0.0] * config.num_experts
    if kind == "sigmoid":
        levels = st.sampled_from([0.0, 0.0, 0.25, -0.5])
        biases = data.draw(st.lists(levels, min_size=config.num_experts, max_size=config.num_experts))
        router.selection_bias.copy_(torch.tensor(biases))
    torch.manual_seed(5)
    found = router(logits_TE)

    scores_TE = logits_TE.sigmoid() if kind == "sigmoid" else logits_TE.softmax(-1)
    torch.manual_seed(5)
    draws = torch.rand(len(logits_TE)).tolist() if kind == "gshard" and training else None
    biased_TE = scores_TE + torch.tensor(biases)
    expected = route(config, scores_TE.tolist(), biased_TE.tolist(), draws, training)
    assert pairs_of(found) == [(pair.token, pair.expert) for pair in expected.kept]
    assert found.weights_N.tolist() == pytest.approx([pair.weight for pair in expected.kept], rel=1e-5)
    chosen = list(zip(found.chosen_token_ids.tolist(), found.chosen_expert_ids.tolist(), strict=True))
    assert chosen == [(pair.token, pair.expert) for pair in expected.chosen]


@pytest.mark.parametrize("kind", ROUTERS)
def test_scores_of_every_token_sum_to_one_when_router_is(kind: str) -> None:
    per_token = {"switch": 1}.get(kind, 2)
    routing = route_logits(torch.randn(6, 5), router=kind, num_experts_per_tok=per_token)
    assert routing.scores_TE.sum(-1).tolist() == pytest.approx([1.0] * 6)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "gshard"])
def test_weights_of_a_token_sum_to_one_when_renormalised(kind: str) -> None:
    routing = route_logits(torch.randn(6, 5), router=kind, norm_topk_prob=True)
    assert routing.weights_N.view(6, 2).sum(-1).tolist() == pytest.approx([1.0] * 6)


def test_weights_are_the_scores_when_renormalisation_is_off() -> None:
    routing = route_logits([[0.0, 0.0, 0.0, 0.0]], norm_topk_prob=False)
    assert routing.weights_N.tolist() == [0.25, 0.25]


def test_bias_changes_the_choice_but_not_the_weights_when_router_is_sigmoid() -> None:
    router = identity_router(router_config(3, 1, router="sigmoid", norm_topk_prob=False))
    logits_TE = torch.tensor([[2.0, 1.0, 0.0]])
    assert pairs_of(router(logits_TE)) == [(0, 0)]
    router.selection_bias.copy_(torch.tensor([0.0, 0.0, 0.5]))
    routing = router(logits_TE)
    assert pairs_of(routing) == [(0, 2)]
    assert routing.weights_N.tolist() == [0.5]


def test_bias_gets_no_gradient_and_is_stored_when_router_is_sigmoid() -> None:
    router = identity_router(router_config(3, 1, router="sigmoid"))
    assert list(router.state_dict()) == ["weight", "selection_bias"]
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    assert not router(torch.randn(2, 3)).chosen_expert_ids.requires_grad
    assert router.selection_bias.grad_fn is None


def test_noise_multiplies_the_input_when_training_with_jitter() -> None:
    router = identity_router(router_config(4, 0, router="switch", router_jitter_noise=0.25))
    hidden_TD = torch.randn(50, 4)
    assert torch.equal(router(hidden_TD).logits_TE, hidden_TD)
    ratio = (router.train()(hidden_TD).logits_TE / hidden_TD).detach()
    assert 0.75 <= float(ratio.min()) < 0.8
    assert 1.2 < float(ratio.max()) <= 1.25


def test_second_expert_is_kept_as_often_as_its_weight_says_when_gshard_trains() -> None:
    router = identity_router(router_config(2, 0, router="gshard")).train()
    # A share of 0.2 is kept with probability 0.4.
    routing = router(torch.tensor([[4.0, 1.0]]).log().expand(4000, 2))
    assert len(routing.token_ids_N) / 4000 == pytest.approx(1.4, abs=0.03)
    router.eval()
    assert len(router(torch.tensor([[4.0, 1.0]]).log()).token_ids_N) == 2


def test_second_expert_is_always_kept_when_gshard_is_told_so() -> None:
    router = identity_router(router_config(2, 0, router="gshard", gshard_random_second=False)).train()
    assert len(router(torch.tensor([[9.0, -9.0]]).expand(20, 2)).token_ids_N) == 40


@pytest.mark.parametrize(
    ("factor", "num_tokens", "rows"),
    [(1.0, 8, 4), (1.0, 7, 4), (1.5, 8, 6), (0.01, 8, 1), (1.1, 20, 11), (1.1, 100, 55), (1.12, 25, 14)],
)
def test_capacity_is_the_fair_share_times_the_factor_when_factor_is(factor: float, num_tokens: int, rows: int) -> None:
    router = identity_router(router_config(4, 2, capacity_factor=factor)).train()
    assert router.capacity(num_tokens) == rows


def test_capacity_is_without_limit_when_no_factor_is_set() -> None:
    assert identity_router(router_config(4, 2)).train().capacity(100) is None


def test_capacity_is_without_limit_when_evaluation_has_no_factor_of_its_own() -> None:
    assert identity_router(router_config(4, 2, capacity_factor=1.0)).capacity(100) is None


def test_capacity_of_training_holds_in_evaluation_when_experts_choose() -> None:
    router = identity_router(router_config(4, 2, router="expert_choice", capacity_factor=1.5))
    assert router.capacity(8) == router.train().capacity(8) == 6


def test_capacity_of_evaluation_differs_when_it_has_its_own_factor() -> None:
    router = identity_router(router_config(4, 2, capacity_factor=1.0, eval_capacity_factor=2.0))
    assert router.capacity(8) == 8
    assert router.train().capacity(8) == 4


def test_first_tokens_are_kept_when_all_fall_on_one_expert() -> None:
    routing = route_logits([[5.0, 0.0]] * 4, router="switch", num_experts_per_tok=0, eval_capacity_factor=1.0)
    assert pairs_of(routing) == [(0, 0), (1, 0)]
    assert routing.chosen_expert_ids.tolist() == [0, 0, 0, 0]


def test_routing_runs_in_float32_when_hidden_states_are_bfloat16() -> None:
    router = identity_router(router_config(4, 2))
    routing = router(torch.randn(3, 4).bfloat16())
    assert routing.logits_TE.dtype == routing.weights_N.dtype == torch.float32
