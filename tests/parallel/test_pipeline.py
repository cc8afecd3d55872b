"""Tokens in chunks: the same rows bit for bit, and messages that travel while experts compute."""

import threading
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.comm.all_to_all import FlatAllToAll, FlatExchange
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Routing
from moesaic.ops.mixture import mix_experts
from moesaic.parallel import pipeline
from moesaic.parallel.expert import AllToAllDispatcher
from moesaic.parallel.pipeline import PipelinedDispatcher
from tests.comm.pool import Pools

NUM_EXPERTS, CHOSEN, WIDTH, HIDDEN = 8, 3, 64, 32


def _group() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def _draw(dtype: torch.dtype, num_tokens: int) -> tuple[Tensor, Routing, Experts]:
    """Draw another rank's experts and tokens on each rank."""
    torch.manual_seed(5 + dist.get_rank())
    hidden_TD = torch.randn(num_tokens, WIDTH).to(dtype).requires_grad_()
    scores_TE = torch.randn(num_tokens, NUM_EXPERTS)
    weights_TK, experts_TK = scores_TE.softmax(1).topk(CHOSEN)
    tokens_N = torch.arange(num_tokens).repeat_interleave(CHOSEN)
    weights_N, experts_N = weights_TK.flatten().requires_grad_(), experts_TK.flatten()
    experts = Experts(NUM_EXPERTS // dist.get_world_size(), WIDTH, HIDDEN)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return hidden_TD, Routing(tokens_N, experts_N, weights_N, tokens_N, experts_N, scores_TE, scores_TE), experts


def _compare(dtype: torch.dtype, degree: int, num_tokens: tuple[int, int]) -> list[float]:
    """Return how far gradients of routing and expert weights are apart, relatively; the rest is equal bit for bit."""
    hidden_TD, routing, experts = _draw(dtype, num_tokens[dist.get_rank()])
    wanted = [hidden_TD, routing.weights_N, *experts.parameters()]
    found = []
    for dispatcher in (
        AllToAllDispatcher(FlatAllToAll(_group())),
        PipelinedDispatcher(FlatAllToAll(_group()), degree),
    ):
        mixed_TD = dispatcher.mix(hidden_TD, routing, experts)
        found.append([mixed_TD, *torch.autograd.grad(mixed_TD.float().square().sum(), wanted)])
    expected, chunked = found
    for name, whole, part in zip(("mixed", "hidden.grad"), expected, chunked, strict=False):
        assert torch.equal(whole, part), name
    return [
        float((part - whole).abs().max() / whole.abs().max())
        for whole, part in zip(expected[2:], chunked[2:], strict=True)
    ]


@pytest.mark.parametrize("degree", [1, 2, 8])
@pytest.mark.parametrize("num_tokens", [(96, 96), (50, 7), (3, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_those_of_whole_layer_bit_for_bit_when_tokens_travel_in_chunks(
    dtype: torch.dtype, degree: int, num_tokens: tuple[int, int], pools: Pools
) -> None:
    # A chunk's gradient of the weights is rounded to the dtype of the tokens, as that of all of them is.
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for apart in pools(2).run(_compare, dtype, degree, num_tokens):
        assert max(apart) <= tolerance


def _frozen(degree: int) -> bool:
    hidden_TD, routing, experts = _draw(torch.float32, 16)
    dispatcher = PipelinedDispatcher(FlatAllToAll(_group()), degree)
    with torch.no_grad():
        evaluated_TD = dispatcher.mix(hidden_TD, routing, experts)
    experts.requires_grad_(False)
    mixed_TD = dispatcher.mix(hidden_TD, routing, experts)
    mixed_TD.sum().backward()
    assert hidden_TD.grad is not None
    assert all(weight.grad is None for weight in experts.parameters())
    return torch.equal(evaluated_TD, mixed_TD) and not evaluated_TD.requires_grad


def test_chunks_travel_without_gradients_when_evaluated_or_frozen(pools: Pools) -> None:
    assert pools(2).run(_frozen, 4) == [True, True]


def _trace(degree: int) -> tuple[list[str], list[str]]:
    """Return what began and ended in forward and in backward; messages wait until experts have begun to compute."""
    hidden_TD, routing, experts = _draw(torch.float32, 32)
    told: list[str] = []
    computing = threading.Event()
    move = FlatExchange.move

    def slowly(self: FlatExchange, rows: Tensor, back: bool) -> Tensor:
        # All messages but the first two, the weights and the first chunk's rows, travel under a computation.
        if sum(each == "message" for each in told) >= 2:
            assert computing.wait(20), "nothing is computed while a message travels"
        moved = move(self, rows, back)
        told.append("message")
        return moved

    def mix(*arguments: Any) -> Tensor:
        told.append("begin")
        computing.set()
        mixed_RD = mix_experts(*arguments)
        told.append("end")
        return mixed_RD

    def tell() -> None:
        told.append("idle")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "mix_experts", mix)
        patch.setattr(FlatExchange, "move", slowly)
        mixed_TD = PipelinedDispatcher(FlatAllToAll(_group()), degree, tell).mix(hidden_TD, routing, experts)
        forward = list(told)
        told.clear()
        mixed_TD.sum().backward()
    return forward, told


def test_messages_travel_while_experts_compute_when_tokens_are_in_chunks(pools: Pools) -> None:
    for forward, backward in pools(2).run(_trace, 4):
        # Had the second chunk's message been waited for before the first was computed, it would not have come at all.
        assert forward[:3] == ["message", "message", "begin"]
        assert forward.count("message") == 1 + 2 * 4
        assert forward.count("begin") == 4
        # There and back for each chunk, and the weights; experts have all they need once in between.
        assert backward.count("message") == 1 + 2 * 4
        assert backward.count("idle") == 1
        assert 4 <= backward.index("idle") <= 8
