"""Shares of FSDP on their way, and what a step tells of its messages."""

import pytest
import torch
import torch.distributed as dist

from moesaic.comm.collective import TRAFFIC
from moesaic.comm.mesh import build_mesh
from moesaic.comm.world import World
from moesaic.optim.table import build_optimizer
from moesaic.parallel.apply import apply_parallel, share_gradients
from moesaic.parallel.plan import plan_degrees
from moesaic.parallel.share import SumShares
from moesaic.train.step import train_step
from tests.comm.pool import Pools
from tests.parallel.twin import Changes, twin_batch, twin_config, twin_model


def _sum_shares() -> dict[str, int]:
    rank, group = dist.get_rank(), dist.group.WORLD
    assert group is not None
    TRAFFIC.take()
    gradient = torch.arange(6.0) * (rank + 1)
    out = SumShares().allocate((3,), dtype=torch.float32, device=torch.device("cpu"))
    SumShares()(out, gradient, group, dist.ReduceOp.SUM)
    assert torch.equal(out, 3 * torch.arange(6.0)[3 * rank : 3 * rank + 3])
    return TRAFFIC.take()


def test_each_rank_is_sent_its_own_share_when_gradients_are_summed(pools: Pools) -> None:
    assert pools(2).run(_sum_shares)[0] == {"all_to_all_bytes": 24, "all_to_all_messages": 1}


def _traffic(changes: Changes) -> tuple[dict[str, int], int]:
    """Return what a step tells of its messages, and the bytes of the parameters that are no experts'."""
    config = twin_config(changes)
    degrees = plan_degrees(config.parallel, config.model, dist.get_world_size())
    mesh = build_mesh(degrees.data_replicate, degrees.data_shard, degrees.expert)
    model = apply_parallel(twin_model(config), mesh)
    world = World(dist.get_rank(), dist.get_world_size())
    gradients = share_gradients(model, mesh, config.parallel.bucket_bytes)
    optimizer = build_optimizer(model, config.optim)
    result = train_step(model, optimizer, twin_batch(config), 1, config, world, gradients)
    dense = sum(each.numel() * each.element_size() for name, each in model.named_parameters() if "experts" not in name)
    return result.traffic, dense


def test_fewer_and_longer_messages_sum_gradients_when_buckets_are_larger(pools: Pools) -> None:
    layout = {"parallel.expert": 2, "model.num_hidden_layers": 4}
    small, dense = pools(2).run(_traffic, layout | {"parallel.bucket_bytes": 1024})[0]
    large, _ = pools(2).run(_traffic, layout | {"parallel.bucket_bytes": 2**20})[0]
    assert large["all_reduce_messages"] < small["all_reduce_messages"] - 10
    # All of the gradients either way, in pieces that begin at multiples of 256 bytes.
    assert dense <= large["all_reduce_bytes"] < 1.2 * dense
    assert large["all_reduce_bytes"] == pytest.approx(small["all_reduce_bytes"], rel=0.01)
    assert small["all_to_all_messages"] == large["all_to_all_messages"] > 0


def test_layers_are_gathered_and_summed_as_one_message_each_when_kept_in_shares(pools: Pools) -> None:
    layers = 3
    layout = {"parallel.expert": 1, "parallel.data_shard": 2, "model.num_hidden_layers": layers, "model.num_experts": 0}
    traffic, dense = pools(2).run(_traffic, layout)[0]
    # Forward and backward gather each layer; what is of no layer is gathered once.
    assert traffic["all_gather_messages"] == 2 * layers + 1
    assert traffic["all_to_all_messages"] == layers + 1
    assert dense <= traffic["all_to_all_bytes"] < 1.2 * dense
