"""What layers cost: their work by arithmetic, and measurements that leave no trace."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor

from moesaic.comm.all_to_all import FlatAllToAll, FlatExchange
from moesaic.comm.hierarchical import HierarchicalAllToAll
from moesaic.comm.mesh import build_mesh
from moesaic.models.model import build_model
from moesaic.parallel import expert, pipeline
from moesaic.parallel.apply import apply_parallel
from moesaic.parallel.profile import Profile, is_faster, list_work, measure_profile
from moesaic.parallel.schedule import Layer
from moesaic.testing.tiny import tiny_config
from tests.comm.pool import Pools


def test_work_is_that_of_the_layers_between_mixtures_when_listed() -> None:
    config = tiny_config(num_experts=8, num_experts_per_tok=2, num_hidden_layers=4, mlp_only_layers=[1])
    model = build_model(config, device="meta")
    sizes = {name: weight.numel() for name, weight in model.named_parameters() if ".experts." not in name}

    def dense(*layers: int) -> int:
        return sum(
            size for name, size in sizes.items() if name.startswith(tuple(f"decoder.layers.{n}." for n in layers))
        )

    outside = sum(size for name, size in sizes.items() if ".layers." not in name and "embedding" not in name)
    assert outside > 0
    expert = 3 * config.hidden_size * config.expert_width
    # Of four ranks, a token with two experts needs 4 (1 - (3/4)^2).
    message_bytes = 100 * 1.75 * config.hidden_size * 2
    assert list_work(model, 100, torch.bfloat16, 4) == [
        Layer(100, pytest.approx(message_bytes), 200, 100 * dense(0) / expert, 4 * dense(1, 2)),
        Layer(100, pytest.approx(message_bytes), 200, 100 * dense(1, 2) / expert, 4 * dense(3)),
        Layer(100, pytest.approx(message_bytes), 200, 100 * dense(3) / expert, 4 * outside),
    ]


def _measured(num_hops: int) -> Profile:
    mesh = build_mesh(4, 1, 4, 2)
    config = tiny_config(num_experts=8, num_experts_per_tok=2)
    model = apply_parallel(build_model(config), mesh)
    assert mesh.nodes is not None
    way = (
        FlatAllToAll(mesh.tokens)
        if num_hops == 1
        else HierarchicalAllToAll(mesh.nodes.get_group("node"), mesh.nodes.get_group("rail"))
    )
    experts = next(iter(model.moe_layers().values())).experts
    work = list_work(model, 32, torch.float32, 4)
    state = torch.get_rng_state()
    profile = measure_profile(way, experts, torch.float32, work[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None and weight.requires_grad for weight in experts.parameters())
    return profile


@pytest.mark.parametrize("num_hops", [1, 2])
def test_ranks_have_the_same_profile_and_nothing_has_changed_when_measured(num_hops: int, pools: Pools) -> None:
    first, *others = pools(4).run(_measured, num_hops)
    assert others == [first] * 3
    costs = first.costs
    assert len(costs.hops) == num_hops
    assert all(
        cost.seconds(1000) > 0 for cost in (*costs.hops, costs.forward, costs.backward, costs.reduce, first.gather)
    )
    assert 0 <= costs.overlap <= 1
    told = first.tell()
    assert len(told) == num_hops + 5
    assert told[0].startswith("messages inside a node: " if num_hops == 2 else "messages: ")


def _faster(slow_s: float) -> tuple[bool, bool]:
    """Compare two chunks with the whole; then with messages that take so long each, beside the experts."""
    mesh = build_mesh(4, 1, 4, 2)
    config = tiny_config(num_experts=8, num_experts_per_tok=2)
    model = apply_parallel(build_model(config), mesh)
    way = FlatAllToAll(mesh.tokens)
    experts = next(iter(model.moe_layers().values())).experts
    work = list_work(model, 32, torch.float32, 4)[0]
    many = is_faster(way, experts, torch.float32, work, 8)
    mix, move = pipeline.mix_experts, FlatExchange.move

    def slowly(self: FlatExchange, rows: Tensor, back: bool) -> Tensor:
        time.sleep(slow_s * len(rows) / 64)
        return move(self, rows, back)

    def mix_slowly(rows: Tensor, *others: Any) -> Tensor:
        time.sleep(slow_s * len(rows) / 64)
        return mix(rows, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlatExchange, "move", slowly)
        patch.setattr(pipeline, "mix_experts", mix_slowly)
        patch.setattr(expert, "mix_experts", mix_slowly)
        return many, is_faster(way, experts, torch.float32, work, 2)


def test_chunks_are_faster_when_messages_and_experts_take_long_and_only_then(pools: Pools) -> None:
    assert pools(4).run(_faster, 0.1) == [(False, True)] * 4
