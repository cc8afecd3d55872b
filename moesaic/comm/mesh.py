"""Which ranks belong together.

Ranks are numbered with the axis that talks most innermost, so that its ranks share a node:

    dense parameters    data_replicate x data_shard
    expert parameters   expert_replicate x expert
    shared widths       data_replicate x data_shard x tensor

    8 ranks, data_shard 4, expert 2    0 1 2 3 | 4 5 6 7        keep each a quarter of the dense parameters
                                       0 1 | 2 3 | 4 5 | 6 7    keep each half of the experts

Ranks that share the heads of attention have sequences of their own. So they count as ranks of data to every parameter
that is not cut along the heads: where there are shares, these are spread over them too.
"""

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout


@dataclass(frozen=True)
class Mesh:
    """The ranks of a run, seen in several ways.

    Attributes:
        dense: axes data_replicate, data_shard; of all parameters but those below.
        expert: axes expert_replicate, expert.
        nodes: axes expert_replicate, rail, node, where the ranks of an expert axis fill several nodes: on a rail are
            those with the same place in theirs. Else None.
        width: axes data_replicate, data_shard, tensor, where ranks share heads and widths. Else None.
        data: one axis: all ranks, each of which has sequences of its own.
        tokens: the ranks of the axis of experts, in a group of their own. Rows may be under way in it beside other
            messages; the axis's group is that of all ranks where it is as long, as torch has it, and ranks must send
            in one order in each group.
    """

    dense: DeviceMesh
    expert: DeviceMesh
    nodes: DeviceMesh | None
    width: DeviceMesh | None
    data: DeviceMesh
    tokens: dist.ProcessGroup

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


def build_mesh(
    data_replicate: int,
    data_shard: int,
    expert: int,
    ranks_per_node: int = 1,
    tensor: int = 1,
    device: str = "cpu",
    timeout_s: int | None = None,
) -> Mesh:
    """Build the groups of ranks; all ranks must call.

    Args:
        data_replicate, data_shard, tensor: multiply to the number of ranks.
        expert: divides it.
        ranks_per_node: that share a machine; as many on each.
        device: kind of device that the parameters are on.
        timeout_s: after so long a wait in any of the groups another rank counts as dead; None: as torch has it.
    """

    def mesh(**sizes: int) -> DeviceMesh:
        return init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

    num_ranks = data_replicate * data_shard * tensor
    replicas = num_ranks // expert
    nodes = width = None
    if 1 < ranks_per_node < expert and expert % ranks_per_node == 0:
        nodes = mesh(expert_replicate=replicas, rail=expert // ranks_per_node, node=ranks_per_node)
    if tensor > 1:
        width = mesh(data_replicate=data_replicate, data_shard=data_shard, tensor=tensor)
    shares = data_shard * tensor if data_shard > 1 else 1
    dense, data = mesh(data_replicate=num_ranks // shares, data_shard=shares), mesh(data=num_ranks)
    experts = mesh(expert_replicate=replicas, expert=expert)
    tokens = _new_group(tuple(map(tuple, experts.mesh.tolist())))
    if timeout_s is not None:
        axes = [group for each in (dense, experts, nodes, width) if each is not None for group in each.get_all_groups()]
        for group in (tokens, *axes):
            # Each would have torch's own half an hour.
            _set_pg_timeout(timedelta(seconds=timeout_s), group)
    return Mesh(dense, experts, nodes, width, data, tokens)


def _new_group(ranks: tuple[tuple[int, ...], ...]) -> dist.ProcessGroup:
    """Return the one of several new groups that this rank is in; all ranks must call."""
    group, _ = dist.new_subgroups_by_enumeration([list(each) for each in ranks])
    assert group is not None, "every rank is in one"
    return group
