"""Expert parallelism: every rank has some experts of each layer, and tokens travel to them.

A token goes once to each rank that has some of its experts, however many, with its routing weights. That rank computes
them all as one mixture and sends one sum back; what it costs to travel grows with the ranks a token needs, not with
the experts.

    token 0  experts 0 1 5    two ranks, experts 0..3 and 4..7      rank 0 gets tokens 0 1, rank 1 token 0
    token 1  experts 2 3                                            rows 3, where pairs are 5
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from moesaic.comm.all_to_all import AllToAll, Exchange
from moesaic.comm.mesh import Mesh
from moesaic.models.model import LanguageModel
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Routing
from moesaic.ops.mixture import mix_experts
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import combine, group_by_expert, permute


@dataclass(frozen=True)
class _Trip:
    """Which rows and pairs go to which rank.

    Attributes:
        rows: (token, rank) pairs, grouped by rank.
        order_N: the routed pairs by the rank that has their expert, tokens ascending.
        pair_ids_N: for each of those, its row among those of its rank, times X, plus its expert there.
        counts_W2: rows and pairs for each rank.
    """

    rows: Permutation
    order_N: Tensor
    pair_ids_N: Tensor
    counts_W2: Tensor


def _plan_trip(routing: Routing, num_tokens: int, num_ranks: int, experts_per_rank: int) -> _Trip:
    tokens_N, experts_N = routing.token_ids_N, routing.expert_ids_N
    ranks_N = experts_N // experts_per_rank
    goes_TW = torch.zeros(num_tokens, num_ranks, dtype=torch.bool, device=tokens_N.device)
    goes_TW[tokens_N, ranks_N] = True
    tokens_R, ranks_R = goes_TW.nonzero(as_tuple=True)
    rows = group_by_expert(tokens_R, ranks_R, num_tokens, num_ranks)
    starts_W = rows.counts_E.cumsum(0) - rows.counts_E
    row_TW = torch.zeros(num_tokens, num_ranks, dtype=torch.int64, device=tokens_N.device)
    row_TW[tokens_R, ranks_R] = rows.inverse_N - starts_W[ranks_R]
    order_N = ranks_N.argsort(stable=True)
    pair_ids_N = row_TW[tokens_N, ranks_N] * experts_per_rank + experts_N % experts_per_rank
    counts_W2 = torch.stack([rows.counts_E, torch.bincount(ranks_N, minlength=num_ranks)], dim=1)
    return _Trip(rows, order_N, pair_ids_N[order_N], counts_W2)


class AllToAllDispatcher:
    """Experts are spread evenly over the ranks of a group, in their order."""

    def __init__(self, all_to_all: AllToAll) -> None:
        self._all_to_all = all_to_all

    def expect(self, routing: Routing) -> None:
        """Do nothing: every rank has its experts at hand."""

    def mix(self, hidden_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """Send tokens away, mix what comes, and add up what comes back; all ranks must call.

        The sum over a token's experts is added up rank by rank, in the dtype of hidden_TD.
        """
        gate_up, down = (_own(weight).to(hidden_TD.dtype) for weight in (experts.gate_up, experts.down))
        trip = _plan_trip(routing, len(hidden_TD), self._all_to_all.size, len(gate_up))
        received_W2, (rows, pairs) = self._all_to_all.plan(trip.counts_W2)

        rows_RD = rows.send(permute(hidden_TD, trip.rows))
        weights_N, pair_ids_N = _send_pairs(pairs, routing.weights_N[trip.order_N], trip.pair_ids_N)
        rows_W, pairs_W = received_W2.unbind(1)
        starts_W = rows_W.cumsum(0) - rows_W
        pair_rows_N = pair_ids_N // len(gate_up) + starts_W.repeat_interleave(pairs_W)
        permutation = group_by_expert(pair_rows_N, pair_ids_N % len(gate_up), len(rows_RD), len(gate_up))
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


def _send_pairs(pairs: Exchange, weights_N: Tensor, pair_ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Send weights and ids as one message, the bits of each id in place of a weight."""
    integer = torch.int64 if weights_N.dtype == torch.float64 else torch.int32
    bits_N = pair_ids_N.to(integer).view(weights_N.dtype)
    received_N2 = pairs.send(torch.stack([weights_N, bits_N], dim=1))
    return received_N2[:, 0], received_N2[:, 1].detach().contiguous().view(integer).long()


def _own(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
