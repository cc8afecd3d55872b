"""Tensor parallelism: ranks that are neighbours share the heads of attention and the width of dense MLPs.

Each rank keeps its own sequences everywhere else, so norms, routers, embedding and loss need not know. Where a module
is shared, the rows of all neighbours are brought together, each computes its part of the width for all of them, and
every rank gets the sums for its own rows back (the sequence parallelism of Korthikanti et al., 2022, "Reducing
Activation Recomputation in Large Transformer Models", over whole sequences):

    rows a | b      gather  a b | a b      heads 0 1 of a b | heads 2 3 of a b      sum  a | b
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Shard, distribute_tensor

from moesaic.comm.collective import all_reduce
from moesaic.comm.gather import count_rows, gather_rows, sum_rows
from moesaic.models.model import LanguageModel
from moesaic.nn.attention import SelfAttention
from moesaic.nn.mlp import GatedMlp
from moesaic.nn.norm import RmsNorm
from moesaic.ops.linear import linear
from moesaic.parallel.part import local_view


class SharedRows:
    """The sequences of the ranks that share heads."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self._nums_B: list[int] = []
        self._length = 0

    def meet(self, positions_BS: Tensor, document_ids_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Gather what tells of the sequences; all ranks of the group must call."""
        self._nums_B = count_rows(len(positions_BS), self.group)
        self._length = positions_BS.shape[1]
        documents = None if document_ids_BS is None else gather_rows(document_ids_BS, self._nums_B, self.group)
        return gather_rows(positions_BS, self._nums_B, self.group), documents

    def gather(self, hidden: Tensor) -> Tensor:
        """Return the hidden states [B, S, D] or [B S, D] of all ranks."""
        return gather_rows(hidden, self._nums(hidden), self.group)

    def sum(self, hidden: Tensor) -> Tensor:
        """Return this rank's rows of the sums of what all ranks made of those."""
        return sum_rows(hidden, self._nums(hidden), self.group)

    def _nums(self, hidden: Tensor) -> list[int]:
        length = self._length if hidden.dim() == 2 else 1
        return [num * length for num in self._nums_B]


class SharedLinear(nn.Module):
    """A rank's part of a linear map.

    Attributes:
        weight: [out, in], cut along either.
        bias: cut as the outputs are; where the inputs are cut, whole on each rank.
        adds_bias: whether the bias is added here: to a sum over ranks only one of them adds it.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, adds_bias: bool) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.adds_bias = adds_bias

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in of this rank] to [..., out of this rank]."""
        bias = None if self.bias is None else local_view(self.bias).to(x.dtype)
        if bias is not None and not self.adds_bias:
            bias = bias * 0  # it has a gradient on every rank, or sums over ranks would not be of the same
        return linear(x, local_view(self.weight).to(x.dtype), bias)


class SharedNorm(nn.Module):
    """A rank's part of a norm over a width that ranks share."""

    def __init__(self, norm: RmsNorm, weight: nn.Parameter, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.weight = weight
        self.eps = norm.eps
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """Norm over the last dim of all ranks together; all must call."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = _SumOverRanks.apply(torch.linalg.vecdot(wide, wide), self._group)
        inverse = (squares / self.weight.shape[0] + self.eps).rsqrt().unsqueeze(-1)
        return (wide * inverse).to(x.dtype) * local_view(self.weight).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone()
        all_reduce(total, group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        all_reduce(total, ctx.group)
        return total, None


def apply_tensor_parallel(model: LanguageModel, mesh: DeviceMesh) -> LanguageModel:
    """Leave each rank its heads and its part of dense and shared MLPs; all ranks must call.

    Args:
        model: whole on each rank, or without weights.
        mesh: one axis, of a size that divides heads, key/value heads and widths.
    """
    rows = SharedRows(mesh.get_group())
    model.decoder.rows = rows
    for module in list(model.modules()):
        if isinstance(module, SelfAttention):
            _share_attention(module, mesh, rows)
        if isinstance(module, GatedMlp):
            _share_mlp(module, mesh, rows)
    return model


def shared_parts(model: nn.Module) -> list[list[nn.Module]]:
    """Return the maps and norms that ranks share, those of one module together."""
    modules = [each for each in model.modules() if isinstance(each, SelfAttention | GatedMlp)]
    return [[part for part in each.children() if isinstance(part, SharedLinear | SharedNorm)] for each in modules]


def _share_attention(attention: SelfAttention, mesh: DeviceMesh, rows: SharedRows) -> None:
    for name in ("query", "key", "value"):
        setattr(attention, name, _by_outputs(getattr(attention, name), mesh))
    attention.output = _by_inputs(attention.output, mesh)
    if attention.norm_over_width:
        for name in ("query_norm", "key_norm"):
            norm = getattr(attention, name)
            setattr(attention, name, SharedNorm(norm, _cut(norm.weight, mesh, [Shard(0)]), rows.group))
    _bring_together(attention, rows)


def _share_mlp(mlp: GatedMlp, mesh: DeviceMesh, rows: SharedRows) -> None:
    mlp.gate, mlp.up = _by_outputs(mlp.gate, mesh), _by_outputs(mlp.up, mesh)
    mlp.down = _by_inputs(mlp.down, mesh)
    _bring_together(mlp, rows)


def _bring_together(module: nn.Module, rows: SharedRows) -> None:
    """Have a module, whose first argument is of this rank's rows, compute its part for all, and sum."""
    module.register_forward_pre_hook(lambda _, inputs: (rows.gather(inputs[0]), *inputs[1:]))
    module.register_forward_hook(lambda _module, _inputs, output: rows.sum(output))


def _by_outputs(map_: nn.Linear, mesh: DeviceMesh) -> Any:
    bias = None if map_.bias is None else _cut(map_.bias, mesh, [Shard(0)])
    return SharedLinear(_cut(map_.weight, mesh, [Shard(0)]), bias, adds_bias=True)


def _by_inputs(map_: nn.Linear, mesh: DeviceMesh) -> Any:
    return SharedLinear(_cut(map_.weight, mesh, [Shard(1)]), map_.bias, adds_bias=mesh.get_local_rank() == 0)


def _cut(tensor: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> nn.Parameter:
    return nn.Parameter(distribute_tensor(tensor.detach(), mesh, placements, src_data_rank=None))
