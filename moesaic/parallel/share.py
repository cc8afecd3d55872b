"""How FSDP's shares travel: a layer's are gathered as one message, and its gradients summed where they belong.

gloo sums everything on every rank and then cuts, so here each rank is sent what is to be its own, and sums that: half
of the bytes.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from moesaic.comm.collective import TRAFFIC, all_to_all

# torch 2.13 has other names for them, and warns of these.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Allocating:
    """FSDP asks for the memory of its messages."""

    def allocate(self, size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return memory."""
        return torch.empty(*size, dtype=dtype, device=device)


class GatherShares(_Allocating):
    """The shares of all ranks, brought together on each."""

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        """Gather; called by FSDP."""
        TRAFFIC.add("all_gather", input_tensor)
        return _gather(output_tensor, input_tensor, group=group, async_op=async_op)


class SumShares(_Allocating):
    """The sum over ranks of this rank's share of a gradient."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work | None:
        """Sum; called by FSDP, which waits."""
        assert op == dist.ReduceOp.SUM, "gradients are sums here"
        assert not async_op, "FSDP waits for sums"
        if input_tensor.device.type == "cuda":  # NCCL moves no more than is needed
            TRAFFIC.add("reduce_scatter", input_tensor)
            return _scatter(output_tensor, input_tensor, op, group)
        parts = torch.empty_like(input_tensor)
        all_to_all(parts, input_tensor, group=group)
        torch.sum(parts.view(group.size(), -1), 0, out=output_tensor)
        return None


def count_sum(gradient: Tensor) -> None:
    """Count a sum over groups of ranks that FSDP has made."""
    TRAFFIC.add("all_reduce", gradient)


def travel(module: FSDPModule, sums_over_replicas: bool) -> None:
    """Have the shares of a module travel so."""
    module.set_custom_all_gather(GatherShares())  # type: ignore[arg-type]  # its base is not public
    module.set_custom_reduce_scatter(SumShares())  # type: ignore[arg-type]
    if sums_over_replicas:
        module.set_all_reduce_hook(count_sum)
