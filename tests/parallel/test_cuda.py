"""What ranks on GPUs do, by the only one there is: its messages to itself go through NCCL."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from moesaic.comm.all_to_all import FlatAllToAll
from moesaic.comm.mesh import Mesh, build_mesh
from moesaic.comm.world import ALONE, World
from moesaic.optim.table import build_optimizer
from moesaic.parallel.batch import SharedBatch
from moesaic.parallel.data import apply_data_shard
from moesaic.parallel.embedding import apply_embedding_parallel
from moesaic.parallel.expert import apply_expert_parallel
from moesaic.parallel.gradient import SharedGradients, build_buckets
from moesaic.parallel.part import whole
from moesaic.parallel.tensor import apply_tensor_parallel
from moesaic.train.step import train_step
from tests.parallel.twin import twin_batch, twin_config, twin_model

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """The axes of one rank."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield build_mesh(1, 1, 1, device="cuda")
    dist.destroy_process_group()


@pytest.mark.parametrize("layout", ["experts", "shares", "heads", "embedding"])
def test_step_is_that_of_the_cpu_when_messages_go_through_nccl(layout: str, mesh: Mesh) -> None:
    config = twin_config({"model.shared_expert_intermediate_size": 8})
    alone, model = twin_model(config), twin_model(config).to(DEVICE)
    for moe in model.moe_layers().values():
        moe.batch = SharedBatch(mesh.everyone)
    if layout == "experts":
        apply_expert_parallel(model, mesh, FlatAllToAll(mesh.tokens))
    if layout == "heads":
        apply_tensor_parallel(model, mesh.data)
    if layout == "embedding":
        apply_embedding_parallel(model, mesh.data)
    if layout == "shares":
        apply_data_shard(model, mesh)
    kept = [] if layout == "shares" else build_buckets(list(model.parameters()), mesh.everyone, 4096)
    gradients = SharedGradients(model, kept, mesh.everyone)
    batch = twin_batch(config)
    expected = train_step(alone, build_optimizer(alone, config.optim), batch, 1, config, ALONE)
    world = World(device=DEVICE)
    found = train_step(model, build_optimizer(model, config.optim), batch, 1, config, world, gradients)
    # Routing weights are float32 in any model.
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    for (name, one), other in zip(alone.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(whole(other).detach().cpu(), one.detach(), rtol=1e-3, atol=1e-4, msg=name)
