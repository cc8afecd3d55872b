"""Where each parameter is kept, for any number of ranks and without them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # noqa: F401 - importing it makes the backend 'fake' known
from torch import Tensor
from torch.distributed.tensor import DTensor

from moesaic.comm.mesh import build_mesh
from moesaic.config.run import RunConfig
from moesaic.models.model import build_model
from moesaic.parallel.apply import apply_parallel
from moesaic.parallel.part import local_part
from moesaic.parallel.plan import plan_degrees


def describe_layout(config: RunConfig, num_ranks: int) -> list[dict[str, Any]]:
    """Apply a recipe's degrees to a model without weights, as rank 0 of so many ranks that do not exist.

    Returns:
        For each parameter: name, shape, placement in words, elements that rank 0 keeps, and on how many ranks each
        element is.

    Raises:
        ConfigError: the degrees do not fit.
    """
    degrees = plan_degrees(config.parallel, config.model, num_ranks)
    model = build_model(config.model, device="meta")
    with _pretend(num_ranks):
        mesh = build_mesh(degrees.data_replicate, degrees.data_shard, degrees.expert, tensor=degrees.tensor)
        apply_parallel(model, mesh, split_embedding=degrees.splits_embedding)
        return [
            {
                "name": name,
                "shape": list(parameter.shape),
                "placement": _tell(parameter),
                "elements": local_part(parameter).numel(),
                "copies": num_ranks // _num_parts(parameter),
            }
            for name, parameter in model.named_parameters()
        ]


def _num_parts(tensor: Tensor) -> int:
    if not isinstance(tensor, DTensor):
        return 1
    sharded = [axis for axis, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    return math.prod(tensor.device_mesh.size(axis) for axis in sharded)


def _tell(tensor: Tensor) -> str:
    if not isinstance(tensor, DTensor):
        return "whole"
    names = tensor.device_mesh.mesh_dim_names or ()
    shards = [
        f"1/{tensor.device_mesh.size(axis)} over {names[axis]}"
        for axis, placement in enumerate(tensor.placements)
        if not placement.is_replicate()
    ]
    return ", ".join(shards) or "whole"


@contextmanager
def _pretend(num_ranks: int) -> Iterator[None]:
    """Be rank 0 of processes that do not exist; what is sent goes nowhere."""
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=num_ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()
