"""Ours, as `ranks_worker.py` has it computed: a mixture, or a language model, with experts spread over all ranks."""

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo  # torch comes to it when it builds a module without weights; code is not what is measured
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import moesaic
from moesaic.bench.shape import Shape
from moesaic.comm.all_to_all import FlatAllToAll
from moesaic.comm.mesh import build_mesh
from moesaic.hw.allocator import keep_freed_memory
from moesaic.models.model import build_model
from moesaic.nn.moe.layer import MoELayer
from moesaic.parallel.apply import apply_parallel, share_gradients
from moesaic.parallel.batch import SharedBatch
from moesaic.parallel.expert import AllToAllDispatcher
from moesaic.parallel.part import local_part

_BUCKET_BYTES = 2**25
_BALANCE = 0.01


def connect() -> str:
    """Bring the ranks together."""
    keep_freed_memory()
    dist.init_process_group("gloo")
    return moesaic.__version__


def build(tensors: Any, request: dict[str, Any], rank: int, size: int) -> Callable[[], Tensor]:
    """Return the step."""
    return (_build_model if request["layers"] else _build_layer)(tensors, request, rank, size)


def _build_layer(tensors: Any, request: dict[str, Any], rank: int, size: int) -> Callable[[], Tensor]:
    num_experts, width, expert_width = tensors.shape("down")
    with torch.device("meta"):
        layer = MoELayer(Shape(0, width, expert_width, num_experts, request["chosen"]).config())
    own = slice(rank * num_experts // size, (rank + 1) * num_experts // size)
    layer.experts.gate_up = nn.Parameter(tensors.read("gate_up", own))
    layer.experts.down = nn.Parameter(tensors.read("down", own))
    layer.router.weight = nn.Parameter(tensors.read("router"))
    hidden_TD = tensors.read(f"hidden.{rank}").requires_grad_()
    grad_TD = tensors.read(f"grad.{rank}")
    group = dist.group.WORLD
    assert group is not None, "the ranks have met"
    layer.dispatcher, layer.batch = AllToAllDispatcher(FlatAllToAll(group)), SharedBatch(group)

    def step() -> Tensor:
        layer.zero_grad(set_to_none=True)
        hidden_TD.grad = None
        output = layer(hidden_TD.unsqueeze(0))
        ((output.hidden_BSD[0] * grad_TD).sum() + _BALANCE * output.losses["balance_loss"]).backward()
        return output.hidden_BSD[0]

    return step


def _build_model(tensors: Any, request: dict[str, Any], rank: int, size: int) -> Callable[[], Tensor]:
    num_experts, width, expert_width = tensors.shape("decoder.layers.0.moe.experts.down")
    vocab_size = tensors.shape("head.weight")[0]
    shape = Shape(0, width, expert_width, num_experts, request["chosen"])
    config = shape.config(request["layers"], vocab_size)
    mesh = build_mesh(data_replicate=size, data_shard=1, expert=size)
    model = apply_parallel(build_model(config, "meta"), mesh).to(tensors.read("decoder.norm.weight").dtype)
    model = model.to_empty(device="cpu")
    own = slice(rank * num_experts // size, (rank + 1) * num_experts // size)
    for name, parameter in model.named_parameters():
        local_part(parameter).copy_(tensors.read(name, own if isinstance(parameter, DTensor) else slice(None)))
    gradients = share_gradients(model, mesh, _BUCKET_BYTES)
    ids_BS, labels_BS = (tensors.read(f"{name}.{rank}") for name in ("ids", "labels"))

    def step() -> Tensor:
        gradients.clear()
        loss, output = model.score(ids_BS, labels_BS)
        mean = loss / (labels_BS.numel() * size)
        gradients.expect_last()
        (mean + _BALANCE * output.losses["balance_loss"]).backward()
        gradients.complete()
        return mean.detach().reshape(1, 1)

    return step
