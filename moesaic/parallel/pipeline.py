"""Expert parallelism in chunks of tokens: rows of one chunk travel while experts compute another.

    link       send 0  send 1  send 2  send 3  back 0  back 1  back 2  back 3
    experts            mix 0   mix 1   mix 2   mix 3

All chunks share one exchange of counts and one of the routing weights. In backward gradients travel the other way in
the same manner, the last chunk first (`comm/flight.py`). What is computed is what `AllToAllDispatcher` computes, rows
and their gradients bit for bit; gradients of expert weights are added up chunk by chunk, and those of routing weights
may differ in the last bits.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from moesaic.comm.all_to_all import AllToAll
from moesaic.comm.block import Transposition
from moesaic.comm.flight import arrive, depart
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Routing
from moesaic.ops.mixture import mix_experts
from moesaic.ops.permute import combine, permute
from moesaic.parallel.part import local_part, local_view
from moesaic.parallel.trip import Trip, group_received, pack_pairs, plan_trip, unpack_pairs


class PipelinedDispatcher:
    """Experts are spread evenly over the ranks of a group, in their order; tokens go to them in chunks.

    Args:
        all_to_all: along the ranks.
        degree: chunks, r.
        on_idle_link: called in each backward, when all gradients have come that this rank's experts need.
    """

    def __init__(self, all_to_all: AllToAll, degree: int, on_idle_link: Callable[[], None] | None = None) -> None:
        self._all_to_all = all_to_all
        self.degree = degree
        self._on_idle_link = on_idle_link

    def expect(self, routing: Routing) -> None:
        """Do nothing: every rank has its experts at hand."""

    def mix(self, hidden_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """Mix as `AllToAllDispatcher.mix` does; all ranks must call, with as many chunks each.

        Sends, receives and computes in an order that is the same on all ranks.
        """
        num_experts = len(local_part(experts.gate_up))
        num_tokens = len(hidden_TD)
        bounds = [num_tokens * index // self.degree for index in range(self.degree + 1)]
        chunks = hidden_TD.split([end - begin for begin, end in pairwise(bounds)])
        trips = self._plan_trips(bounds, routing, num_experts)
        counts_Wr2 = torch.stack([trip.counts_W2 for trip in trips], dim=1)
        totals_W1 = counts_Wr2[..., 1].sum(1, keepdim=True)
        received_WC, exchanges = self._all_to_all.plan(torch.cat([counts_Wr2.flatten(1), totals_W1], dim=1))
        received_Wr2 = received_WC[:, :-1].unflatten(1, (self.degree, 2))
        for_rows, for_pairs = exchanges[:-1:2], exchanges[-1]

        message = depart(for_pairs, _pack(trips, counts_Wr2[..., 1], routing.weights_N))
        sent = [
            depart(exchange, permute(chunk, trip.rows))
            for exchange, chunk, trip in zip(for_rows, chunks, trips, strict=True)
        ]
        weights_N, pair_ids_N = unpack_pairs(Transposition(received_Wr2[..., 1].tolist()).apply(arrive(message)))
        num_pairs = received_Wr2[..., 1].sum(0).tolist()
        weights, pair_ids = weights_N.split(num_pairs), pair_ids_N.split(num_pairs)
        gate_ups, downs = (_lend(weight, hidden_TD.dtype, self.degree) for weight in (experts.gate_up, experts.down))
        returning = []
        for index, (flight, exchange) in enumerate(zip(sent, for_rows, strict=True)):
            permutation = group_received(pair_ids[index], received_Wr2[:, index], num_experts)
            rows_RD = arrive(flight)
            mixed_RD = mix_experts(rows_RD, weights[index], gate_ups[index], downs[index], permutation)
            # Backward takes the chunks from the last on: when the first one's gradients have come, all have.
            on_gradients = self._on_idle_link if index == 0 else None
            returning.append(depart(exchange, mixed_RD, back=True, on_gradients=on_gradients))
        mixed = [combine(arrive(flight), None, trip.rows) for flight, trip in zip(returning, trips, strict=True)]
        return torch.cat(mixed)

    def _plan_trips(self, bounds: list[int], routing: Routing, num_experts: int) -> list[Trip]:
        tokens_N, experts_N = routing.token_ids_N, routing.expert_ids_N
        cuts = torch.searchsorted(tokens_N, torch.tensor(bounds, device=tokens_N.device)).tolist()
        return [
            plan_trip(
                tokens_N[begin:end] - start, experts_N[begin:end], stop - start, self._all_to_all.size, num_experts
            )
            for (start, stop), (begin, end) in zip(pairwise(bounds), pairwise(cuts), strict=True)
        ]


def _pack(trips: list[Trip], pairs_Wr: Tensor, weights_N: Tensor) -> Tensor:
    """Return the routed pairs of all chunks as one message, by rank and then by chunk."""
    starts = pairs_Wr.sum(0).cumsum(0) - pairs_Wr.sum(0)
    order_N = torch.cat([trip.order_N + start for trip, start in zip(trips, starts, strict=True)])
    pair_ids_N = torch.cat([trip.pair_ids_N for trip in trips])
    return Transposition(pairs_Wr.tolist()).undo(pack_pairs(weights_N[order_N], pair_ids_N))


def _lend(weight: Tensor, dtype: torch.dtype, num_chunks: int) -> list[Tensor]:
    """Return a weight in the dtype of the tokens, once for each chunk; the memory is shared.

    Each chunk's gradient is taken to the dtype of the weight before they are added up.
    """
    cast = local_part(weight).to(dtype)
    own = local_view(weight)
    return [_Lend.apply(own, cast) for _ in range(num_chunks)]


class _Lend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, cast: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return cast.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None
