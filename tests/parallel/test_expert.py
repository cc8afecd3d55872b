"""Tokens on their way to experts of other ranks: how many rows travel, and what happens at the edges."""

import pytest
import torch
import torch.distributed as dist

from moesaic.comm.all_to_all import FlatAllToAll
from moesaic.nn.moe.dispatch import LocalDispatcher
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Routing
from moesaic.ops.mixture import mix_experts
from moesaic.parallel import expert
from moesaic.parallel.expert import AllToAllDispatcher
from tests.comm.pool import Pools

NUM_EXPERTS, WIDTH = 8, 4


def _routing(choices: list[list[int]]) -> Routing:
    tokens = torch.tensor([token for token, each in enumerate(choices) for _ in each], dtype=torch.int64)
    experts = torch.tensor([chosen for each in choices for chosen in each], dtype=torch.int64)
    scores_TE = torch.zeros(len(choices), NUM_EXPERTS, dtype=torch.float64)
    weights_N = (1.0 + torch.arange(len(tokens)).double()).requires_grad_()
    return Routing(tokens, experts, weights_N, tokens, experts, scores_TE, scores_TE)


def _experts(own: slice) -> Experts:
    torch.manual_seed(3)
    whole = Experts(NUM_EXPERTS, WIDTH, 6).double()
    part = Experts(0, WIDTH, 6)
    part.gate_up = torch.nn.Parameter(torch.nn.init.normal_(whole.gate_up.detach())[own])
    part.down = torch.nn.Parameter(torch.nn.init.normal_(whole.down.detach())[own])
    return part


def _compare(choices_of_ranks: list[list[list[int]]]) -> int:
    """Mix this rank's tokens here alone and together, and return how many rows the experts of this rank got."""
    rank, size = dist.get_rank(), dist.get_world_size()
    assert dist.group.WORLD is not None
    share = NUM_EXPERTS // size
    routing = _routing(choices_of_ranks[rank])
    hidden_TD = torch.randn(len(choices_of_ranks[rank]), WIDTH, dtype=torch.float64).requires_grad_()
    num_rows = []

    def counted(rows_RD, *others):  # type: ignore[no-untyped-def]
        num_rows.append(len(rows_RD))
        return mix_experts(rows_RD, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert, "mix_experts", counted)
        own = _experts(slice(rank * share, (rank + 1) * share))
        found_TD = AllToAllDispatcher(FlatAllToAll(dist.group.WORLD)).mix(hidden_TD, routing, own)
    expected_TD = LocalDispatcher().mix(hidden_TD, routing, _experts(slice(None)))
    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-12, atol=1e-12)
    wanted = hidden_TD, routing.weights_N
    for grad, other in zip(
        torch.autograd.grad(found_TD.square().sum(), wanted),
        torch.autograd.grad(expected_TD.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(grad, other, rtol=1e-12, atol=1e-12)
    return num_rows[0]


@pytest.mark.parametrize(
    ("choices", "num_rows"),
    [
        # A token with several experts on a rank goes there once.
        ([[[0, 1, 5], [2, 3]], [[4, 6, 7]]], [2, 2]),
        ([[[0, 1, 2, 3]], [[0, 1, 2, 3], [3]]], [3, 0]),
        ([[], [[7, 0]]], [1, 1]),
        ([[], []], [0, 0]),
        ([[[], [1], []], [[], []]], [1, 0]),
    ],
    ids=["several_experts", "all_on_one_rank", "rank_without_tokens", "no_tokens", "tokens_without_experts"],
)
def test_token_goes_once_to_each_rank_that_has_its_experts_when_mixed(
    choices: list[list[list[int]]], num_rows: list[int], pools: Pools
) -> None:
    assert pools(2).run(_compare, choices) == num_rows
