"""Expert parallelism: every rank has some experts of each layer, and tokens travel to them.

A token goes once to each rank that has some of its experts, however many, with its routing weights. That rank computes
them all as one mixture and sends one sum back; what it costs to travel grows with the ranks a token needs, not with
the experts.

    token 0  experts 0 1 5    two ranks, experts 0..3 and 4..7      rank 0 gets tokens 0 1, rank 1 token 0
    token 1  experts 2 3                                            rows 3, where pairs are 5
"""

from torch import Tensor, nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from moesaic.comm.all_to_all import AllToAll
from moesaic.comm.mesh import Mesh
from moesaic.models.model import LanguageModel
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Routing
from moesaic.ops.mixture import mix_experts
from moesaic.ops.permute import combine, permute
from moesaic.parallel.part import local_view
from moesaic.parallel.trip import group_received, pack_pairs, plan_trip, unpack_pairs


class AllToAllDispatcher:
    """Experts are spread evenly over the ranks of a group, in their order."""

    def __init__(self, all_to_all: AllToAll) -> None:
        self.all_to_all = all_to_all

    def expect(self, routing: Routing) -> None:
        """Do nothing: every rank has its experts at hand."""

    def mix(self, hidden_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """Send tokens away, mix what comes, and add up what comes back; all ranks must call.

        The sum over a token's experts is added up rank by rank, in the dtype of hidden_TD.
        """
        gate_up, down = (local_view(weight).to(hidden_TD.dtype) for weight in (experts.gate_up, experts.down))
        pairs_N = routing.token_ids_N, routing.expert_ids_N
        trip = plan_trip(*pairs_N, len(hidden_TD), self.all_to_all.size, len(gate_up))
        received_W2, (rows, pairs) = self.all_to_all.plan(trip.counts_W2)

        rows_RD = rows.send(permute(hidden_TD, trip.rows))
        weights_N, pair_ids_N = unpack_pairs(pairs.send(pack_pairs(routing.weights_N[trip.order_N], trip.pair_ids_N)))
        permutation = group_received(pair_ids_N, received_W2, len(gate_up))
        mixed_RD = mix_experts(rows_RD, weights_N, gate_up, down, permutation)

        return combine(rows.send_back(mixed_RD), None, trip.rows)


def apply_expert_parallel(model: LanguageModel, mesh: Mesh, all_to_all: AllToAll) -> LanguageModel:
    """Leave each rank its experts of every layer, and have tokens brought to them; all ranks must call."""
    for moe in model.moe_layers().values():
        for name, weight in list(moe.experts.named_parameters()):
            part = distribute_tensor(weight.detach(), mesh.expert, [Replicate(), Shard(0)], src_data_rank=None)
            setattr(moe.experts, name, nn.Parameter(part))
        moe.dispatcher = AllToAllDispatcher(all_to_all)
    return model
