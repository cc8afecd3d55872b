"""The one order in which a model is given to ranks: experts, widths, embedding, the rest, then sums of gradients."""

from functools import partial

from torch.distributed.tensor import DTensor

from moesaic.comm.all_to_all import AllToAll, FlatAllToAll
from moesaic.comm.mesh import Mesh
from moesaic.models.model import LanguageModel
from moesaic.parallel.batch import SharedBatch
from moesaic.parallel.data import apply_data_shard
from moesaic.parallel.embedding import apply_embedding_parallel
from moesaic.parallel.expert import AllToAllDispatcher, apply_expert_parallel
from moesaic.parallel.gradient import SharedGradients, build_buckets
from moesaic.parallel.pipeline import PipelinedDispatcher
from moesaic.parallel.schedule import Schedule
from moesaic.parallel.tensor import apply_tensor_parallel


def apply_parallel(
    model: LanguageModel, mesh: Mesh, all_to_all: AllToAll | None = None, split_embedding: bool = False
) -> LanguageModel:
    """Have a model computed by all ranks of a mesh; all ranks must call.

    Args:
        model: whole on each rank, with equal weights or without any; changed in place.
        all_to_all: how tokens travel along the mesh's axis of experts; None: each rank sends to each.
        split_embedding: whether embedding table and head are in parts, one a rank.
    """
    batch = SharedBatch(mesh.everyone)
    mixtures = model.moe_layers().values()
    for moe in mixtures:
        moe.batch = batch
    if mesh.expert.size(1) > 1:
        apply_expert_parallel(model, mesh, all_to_all or FlatAllToAll(mesh.tokens))
    if mesh.width is not None:
        apply_tensor_parallel(model, mesh.width["tensor"])
    if split_embedding:
        apply_embedding_parallel(model, mesh.data)
    if mesh.dense.size(1) > 1:
        apply_data_shard(model, mesh)
    return model


def apply_schedule(model: LanguageModel, schedule: Schedule, gradients: SharedGradients) -> LanguageModel:
    """Have tokens travel in chunks, and full buckets wait where the schedule says so; results are the same.

    Args:
        model: as `apply_parallel` has spread it.
        schedule: of its mixtures; on all ranks the same one.
        gradients: of the model.
    """
    mixtures = list(model.moe_layers().values())
    released_bytes = schedule.released_bytes or [0] * len(mixtures)
    for moe, degree, num_bytes in zip(mixtures, schedule.degrees, released_bytes, strict=True):
        if degree > 1 and isinstance(moe.dispatcher, AllToAllDispatcher):
            release = None if schedule.released_bytes is None else partial(gradients.release, num_bytes)
            moe.dispatcher = PipelinedDispatcher(moe.dispatcher.all_to_all, degree, release)
    if schedule.released_bytes is not None:
        gradients.hold()
    return model


def share_gradients(model: LanguageModel, mesh: Mesh, bucket_bytes: int) -> SharedGradients:
    """Return the gradients of the steps of a model that `apply_parallel` has spread; all ranks must call.

    Args:
        model: with weights.
        bucket_bytes: of a message that sums gradients.
    """
    mixtures = model.moe_layers().values()
    experts = [parameter for moe in mixtures for parameter in moe.experts.parameters()]
    others = [each for each in model.parameters() if all(each is not expert for expert in experts)]
    # FSDP sums the gradients of what it spreads; what every rank keeps is summed here.
    kept = [each for each in others if not isinstance(each, DTensor)]
    buckets = build_buckets(kept, mesh.everyone, bucket_bytes)
    if mesh.width is not None and mesh.dense.size(1) == 1 and mesh.width.size(0) > 1:
        parts = [each for each in others if isinstance(each, DTensor) and each.device_mesh == mesh.width["tensor"]]
        buckets += build_buckets(parts, mesh.width.get_group("data_replicate"), bucket_bytes)
    if mesh.expert.size(0) > 1:
        buckets += build_buckets(experts, mesh.expert.get_group("expert_replicate"), bucket_bytes)
    return SharedGradients(model, buckets, mesh.everyone)
