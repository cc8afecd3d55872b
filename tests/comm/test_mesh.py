"""Which ranks belong together, and in which groups they talk."""

import torch
import torch.distributed as dist

from moesaic.comm.mesh import build_mesh
from tests.comm.pool import Pools


def _groups(expert: int) -> tuple[list[int], bool]:
    """Return the ranks that tokens travel between, and whether anything else has their group."""
    mesh = build_mesh(dist.get_world_size(), 1, expert)
    others = [mesh.everyone, mesh.data.get_group(), mesh.dense.get_group("data_replicate")]
    return dist.get_process_group_ranks(mesh.tokens), any(mesh.tokens is other for other in others)


def test_tokens_travel_in_a_group_of_their_own_when_all_ranks_share_the_experts(pools: Pools) -> None:
    # torch takes the group of all ranks for an axis as long, where sums may be under way at the same time.
    assert pools(2).run(_groups, 2) == [([0, 1], False)] * 2


def test_tokens_travel_between_neighbours_when_some_ranks_share_the_experts(pools: Pools) -> None:
    assert pools(4).run(_groups, 2) == [([0, 1], False)] * 2 + [([2, 3], False)] * 2


def _timeouts(timeout_s: int) -> set[float]:
    mesh = build_mesh(2, 1, 4, ranks_per_node=2, tensor=2, timeout_s=timeout_s)
    assert mesh.nodes is not None
    assert mesh.width is not None
    axes = [group for each in (mesh.dense, mesh.expert, mesh.nodes, mesh.width) for group in each.get_all_groups()]
    backends = [group._get_backend(torch.device("cpu")) for group in (mesh.tokens, *axes)]
    return {backend.options._timeout.total_seconds() for backend in backends}


def test_every_group_waits_as_long_as_asked_when_a_rank_is_silent(pools: Pools) -> None:
    assert pools(4).run(_timeouts, 61) == [{61.0}] * 4
