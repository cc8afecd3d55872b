"""The part of a tensor that a rank has: the whole of a plain one, a share of one that is spread over ranks."""

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor


def local_part(tensor: Tensor) -> Tensor:
    """Return what this rank has of a tensor; the memory is shared."""
    local = tensor.detach()
    return local.to_local() if isinstance(local, DTensor) else local


def local_view(tensor: Tensor) -> Tensor:
    """Return what this rank has of a tensor; gradients reach the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def num_copies(tensor: Tensor, num_ranks: int) -> int:
    """Return how many ranks have the same part of a tensor as this one."""
    if not isinstance(tensor, DTensor):
        return num_ranks
    mesh = tensor.device_mesh
    same = [mesh.size(axis) for axis, placement in enumerate(tensor.placements) if isinstance(placement, Replicate)]
    return math.prod(same) * num_ranks // mesh.size()


def own_part(like: Tensor, tensor: Tensor) -> Tensor:
    """Return a whole tensor spread over ranks as another one is; nothing is sent."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def load_parts(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a model that may be spread over ranks.

    Raises:
        RuntimeError: as `Module.load_state_dict`.
    """
    own = model.state_dict()
    model.load_state_dict(
        {name: own_part(own[name], tensor) if name in own else tensor for name, tensor in state.items()}
    )


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; of one that is spread over ranks, all of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
