"""Dense parameters over the ranks that share a batch: kept whole, or in shares that are gathered layer by layer."""

from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils._pytree import register_dataclass

from moesaic.comm.mesh import Mesh
from moesaic.models.model import LanguageModel
from moesaic.nn.decoder import DecoderOutput, LayerOutput
from moesaic.nn.moe.router import Routing
from moesaic.parallel.share import travel
from moesaic.parallel.tensor import shared_parts

# Before torch 2.13 FSDP sees no tensors in a record unless it is known as a tree of them, and gathers nothing for the
# backward of a module that returns one.
for _record in (LayerOutput, DecoderOutput, Routing):
    register_dataclass(_record)


def apply_data_shard(model: LanguageModel, mesh: Mesh) -> LanguageModel:
    """Keep a share of each dense parameter, by FSDP2: a layer is gathered before it is computed, and then let go.

    Gradients are sums over ranks, as everywhere here: the loss is divided by what the whole batch holds. The experts
    are spread already, and are left alone.
    """
    dense = mesh.dense if mesh.dense.size(0) > 1 else mesh.dense["data_shard"]
    mixtures = model.moe_layers().values()
    experts = {parameter for moe in mixtures for parameter in moe.experts.parameters()}
    # A layer of a pre-gated model uses the router of another one, which is not gathered then: every rank keeps those.
    early = {parameter for moe in mixtures for parameter in moe.router.parameters() if model.config.pregated}
    if mesh.width is not None:
        # Of what ranks share by width, those with the same part keep shares of it.
        axes = ("data_replicate", "data_shard") if mesh.width.size(0) > 1 else ("data_shard",)
        for parts in shared_parts(model):
            # What is added once to a sum over ranks is the same on all of them.
            parameters = (parameter for each in parts for parameter in each.parameters())
            added = {each for each in parameters if not isinstance(each, DTensor)}
            fully_shard(parts, mesh=mesh.width[axes], ignored_params=added)
    # Embedding and head may be in parts already.
    whole = [model.decoder.embedding, *([] if model.head is None else [model.head])]
    apart = {parameter for each in whole for parameter in each.parameters() if isinstance(parameter, DTensor)}
    for layer in model.decoder.layers:
        fully_shard(layer, mesh=dense, ignored_params=experts | early)
    fully_shard(model, mesh=dense, ignored_params=experts | apart)
    # The one way in: after a second one's backward, what layers of the first still need would be let go.
    register_fsdp_forward_method(model, "score")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # gloo knows no average: what is no sum would come out unscaled.
            module.set_force_sum_reduction_for_comms(True)
            travel(module, mesh.dense.size(0) > 1)
    return model
