"""Which ranks belong together.

Ranks are numbered with the axis that talks most innermost, so that its ranks share a node:

    dense parameters    data_replicate x data_shard
    expert parameters   expert_replicate x expert

    8 ranks, data_shard 4, expert 2    0 1 2 3 | 4 5 6 7        keep each a quarter of the dense parameters
                                       0 1 | 2 3 | 4 5 | 6 7    keep each half of the experts
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True)
class Mesh:
    """The ranks of a run, seen twice.

    Attributes:
        dense: axes data_replicate, data_shard.
        expert: axes expert_replicate, expert.
        nodes: axes expert_replicate, rail, node, where the ranks of an expert axis fill several nodes: on a rail are
            those with the same place in theirs. Else None.
    """

    dense: DeviceMesh
    expert: DeviceMesh
    nodes: DeviceMesh | None

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return self.dense.size()

    @property
    def rank(self) -> int:
        """Return which one this is."""
        return self.dense.get_rank()

    @property
    def everyone(self) -> dist.ProcessGroup:
        """Return the group of all ranks."""
        group = dist.group.WORLD
        assert group is not None, "the processes have met"
        return group


def build_mesh(data_replicate: int, data_shard: int, expert: int, ranks_per_node: int = 1) -> Mesh:
    """Build the groups of ranks; all ranks must call.

    Args:
        data_replicate, data_shard: multiply to the number of ranks.
        expert: divides it.
        ranks_per_node: that share a machine; as many on each.
    """
    replicas = data_replicate * data_shard // expert
    nodes = None
    if 1 < ranks_per_node < expert and expert % ranks_per_node == 0:
        nodes = _mesh(expert_replicate=replicas, rail=expert // ranks_per_node, node=ranks_per_node)
    return Mesh(
        _mesh(data_replicate=data_replicate, data_shard=data_shard),
        _mesh(expert_replicate=replicas, expert=expert),
        nodes,
    )


def _mesh(**sizes: int) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
