"""Which exchange is used."""

import pytest
import torch.distributed as dist

from moesaic.comm import choose
from moesaic.comm.all_to_all import AllToAll, FlatAllToAll
from moesaic.comm.choose import choose_all_to_all, measure_exchange
from moesaic.comm.hierarchical import HierarchicalAllToAll
from moesaic.comm.mesh import build_mesh
from tests.comm.pool import Pools


def _kind(all_to_all: AllToAll) -> str:
    return "hierarchical" if isinstance(all_to_all, HierarchicalAllToAll) else "flat"


def _chosen(kind: str, ranks_per_node: int, expert: int) -> str:
    return _kind(choose_all_to_all(build_mesh(4, 1, expert, ranks_per_node), kind, 8, 8))


@pytest.mark.parametrize(
    ("kind", "ranks_per_node", "expert", "chosen"),
    [
        ("hierarchical", 2, 4, "hierarchical"),
        ("flat", 2, 4, "flat"),
        ("hierarchical", 4, 4, "flat"),
        ("hierarchical", 2, 2, "flat"),
        ("hierarchical", 1, 4, "flat"),
        ("hierarchical", 3, 4, "flat"),
    ],
)
def test_exchange_is_the_one_asked_for_when_experts_fill_several_nodes(
    kind: str, ranks_per_node: int, expert: int, chosen: str, pools: Pools
) -> None:
    assert pools(4).run(_chosen, kind, ranks_per_node, expert) == [chosen] * 4


def _chosen_of_times(times: dict[str, list[float]]) -> str:
    """Choose by made-up times, for each rank its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "measure_exchange", lambda each, *_: times[_kind(each)][dist.get_rank()])
        return _chosen("auto", 2, 4)


def test_ranks_choose_alike_by_the_slowest_when_they_measure_differently(pools: Pools) -> None:
    times = {"flat": [1.0, 1.0, 1.0, 5.0], "hierarchical": [2.0, 2.0, 2.0, 2.0]}
    assert pools(4).run(_chosen_of_times, times) == ["hierarchical"] * 4
    times["hierarchical"][1] = 6.0
    assert pools(4).run(_chosen_of_times, times) == ["flat"] * 4


def _measured() -> float:
    return measure_exchange(FlatAllToAll(build_mesh(2, 1, 2).tokens), 100, 64)


def test_exchange_takes_time_when_measured(pools: Pools) -> None:
    assert all(0 < seconds < 10 for seconds in pools(2).run(_measured))
