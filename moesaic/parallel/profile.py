"""What the layers of a model cost on these ranks: their work, and measurements of it.

All ranks must call alike, and get the same figures: those of the slowest.
"""

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moesaic.comm.all_to_all import AllToAll, Exchange
from moesaic.comm.cost import Cost, fit_cost
from moesaic.comm.line import Arrival
from moesaic.comm.profile import agree, even_message, fit_all_gather, fit_all_reduce, fit_exchange, measure
from moesaic.models.model import LanguageModel
from moesaic.nn.moe.dispatch import Dispatcher
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Routing
from moesaic.parallel.expert import AllToAllDispatcher
from moesaic.parallel.part import local_part
from moesaic.parallel.pipeline import PipelinedDispatcher
from moesaic.parallel.schedule import DEGREES, Costs, Layer

# More does not change the line.
_MOST_PAIRS = 4096
_MOST_BYTES = 2**22
_REPEATS = 3
_ROUNDS = 5
_IN_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Attributes:
        costs: as the schedule takes them.
        gather: of bringing together what ranks have shares of, by the bytes that are then there.
    """

    costs: Costs
    gather: Cost

    def tell(self) -> list[str]:
        """Return a line for each fit."""
        costs = self.costs
        places = ["messages"] if len(costs.hops) == 1 else ["messages inside a node", "messages between nodes"]
        fits = [*zip(places, costs.hops, strict=True), ("sums of gradients", costs.reduce), ("gathers", self.gather)]
        lines = [_tell(name, fit, 2**20, "MiB") for name, fit in fits]
        lines += [_tell("experts forward", costs.forward, 1e3, "1000 pairs")]
        lines += [_tell("experts backward", costs.backward, 1e3, "1000 pairs")]
        return [*lines, f"{costs.overlap:.0%} of a message is hidden while experts compute"]


def _tell(name: str, cost: Cost, unit: float, unit_name: str) -> str:
    each_ms = cost.beta_s * unit * 1e3
    return f"{name}: {cost.alpha_s * 1e3:.3f} ms + {each_ms:.3f} ms a {unit_name}, off by {cost.error:.0%}"


def measure_profile(all_to_all: AllToAll, experts: Experts, dtype: torch.dtype, work: Layer) -> Profile:
    """Measure messages and experts; all ranks must call. It takes some twenty times a layer's forward and backward.

    Args:
        all_to_all: along the ranks that share the experts.
        experts: of a layer, of which this rank has its part; their gradients are let alone.
        dtype: of the tokens.
        work: of the layer.
    """
    group = dist.group.WORLD
    assert group is not None, "the ranks have met"
    message = int(work.message_bytes)
    hops = tuple(fit_exchange(hop, message) for hop in all_to_all.hops)
    layer = _Timed(experts, dtype, all_to_all.size, work)
    times = [(degree, *layer.measure(degree)) for degree in DEGREES]
    # What a chunk costs besides its rows shows in how little less a smaller one takes.
    forward, backward = (
        fit_cost([(layer.num_pairs / degree, seconds[way] / degree) for degree, *seconds in times]) for way in (0, 1)
    )
    reduce, gather = fit_all_reduce(group, _MOST_BYTES), fit_all_gather(group, _MOST_BYTES)
    overlap = layer.measure_overlap(all_to_all, message)
    return Profile(Costs(hops, forward, backward, reduce, overlap), gather)


def is_faster(all_to_all: AllToAll, experts: Experts, dtype: torch.dtype, work: Layer, degree: int) -> bool:
    """Tell whether a layer with all its messages takes less time in chunks than whole; all ranks must call.

    Args:
        all_to_all, experts, dtype, work: as for `measure_profile`.
        degree: chunks.
    """
    layer = _Timed(experts, dtype, all_to_all.size, work)
    ways: tuple[Dispatcher, ...] = AllToAllDispatcher(all_to_all), PipelinedDispatcher(all_to_all, degree)
    times: list[list[float]] = [[], []]
    for _ in range(_ROUNDS + 1):
        for way, seconds in zip(ways, times, strict=True):
            dist.barrier()
            began = time.perf_counter()
            mixed_TD = layer.mix(way)
            mixed_TD.backward(mixed_TD.detach())
            seconds.append(time.perf_counter() - began)
    whole, chunks = (agree(statistics.median(seconds[1:])) for seconds in times)
    return chunks < whole


def list_work(model: LanguageModel, num_tokens: int, dtype: torch.dtype, num_ranks: int) -> list[Layer]:
    """Return the work of each mixture on a rank, routed evenly.

    Args:
        num_tokens: of a rank.
        num_ranks: that the experts of a layer are spread over.
    """
    config, mixtures = model.config, sorted(model.moe_layers())
    chosen, expert = config.experts_per_token, 3 * config.hidden_size * config.expert_width
    # A token goes once to each rank that has any of its experts.
    rows = num_tokens * num_ranks * (1 - (1 - 1 / num_ranks) ** chosen)
    message_bytes = rows * config.hidden_size * dtype.itemsize
    gradient_bytes, dense = dict.fromkeys(mixtures, 0), dict.fromkeys(mixtures, 0)
    for name, weight in model.named_parameters():
        if ".experts." in name or name == "decoder.embedding.weight":
            continue
        found = _IN_LAYER.match(name)
        layer = int(found[1]) if found else config.num_hidden_layers
        # Backward comes to the mixture of a layer first, and then to the rest of it.
        if before := [index for index in mixtures if index < layer]:
            gradient_bytes[before[-1]] += _kept_bytes(weight)
        if after := [index for index in mixtures if index >= layer]:
            dense[after[0]] += weight.numel()
    return [
        Layer(num_tokens, message_bytes, num_tokens * chosen, num_tokens * dense[index] / expert, gradient_bytes[index])
        for index in mixtures
    ]


def _kept_bytes(weight: Tensor) -> int:
    """Return the bytes of a gradient that is summed over all ranks as one; those that FSDP spreads are not."""
    return 0 if isinstance(weight, DTensor) else weight.nbytes


class _Timed:
    """A layer whose messages come back at once, to be timed on tokens that are routed evenly."""

    def __init__(self, experts: Experts, dtype: torch.dtype, num_ranks: int, work: Layer) -> None:
        chosen = max(1, round(work.pairs / work.tokens))
        num_tokens = max(1, min(work.tokens, _MOST_PAIRS // chosen))
        own = [nn.Parameter(local_part(weight)) for weight in (experts.gate_up, experts.down)]
        self.num_pairs = num_tokens * chosen
        self._num_ranks = num_ranks
        self._experts = Experts(0, 0, 0)
        self._experts.gate_up, self._experts.down = own
        source = torch.Generator().manual_seed(0)
        self._hidden_TD = torch.empty(num_tokens, own[0].shape[2]).uniform_(-1, 1, generator=source).to(dtype)
        scores_TE = torch.rand(num_tokens, len(own[0]) * num_ranks, generator=source)
        weights_TK, experts_TK = scores_TE.topk(chosen)
        pairs = torch.arange(num_tokens).repeat_interleave(chosen), experts_TK.flatten()
        weights_N = weights_TK.flatten().requires_grad_()
        self._routing = Routing(*pairs, weights_N, *pairs, scores_TE, scores_TE)

    def measure(self, degree: int) -> tuple[float, float]:
        """Return the seconds of forward and of backward in so many chunks."""
        forwards, backwards = [], []
        for _ in range(_REPEATS + 1):
            dist.barrier()
            began = time.perf_counter()
            mixed_TD = self._mix(degree)
            computed = time.perf_counter()
            mixed_TD.backward(mixed_TD.detach())
            forwards.append(computed - began)
            backwards.append(time.perf_counter() - computed)
        return agree(statistics.median(forwards[1:])), agree(statistics.median(backwards[1:]))

    def measure_overlap(self, all_to_all: AllToAll, num_bytes: int) -> float:
        """Return the share of the shorter of both that vanishes when a message travels while experts compute."""
        exchange, rows = even_message(all_to_all, num_bytes)

        def both() -> None:
            arrival = exchange.begin(rows, False)
            self._mix(1)
            arrival.result()

        message = measure(lambda: exchange.begin(rows, False).result())
        compute = measure(lambda: self._mix(1))
        return min(1.0, max(0.0, (message + compute - measure(both)) / min(message, compute)))

    def _mix(self, degree: int) -> Tensor:
        return self.mix(PipelinedDispatcher(_Mirror(self._num_ranks), degree))

    def mix(self, dispatcher: Dispatcher) -> Tensor:
        """Have the tokens mixed by a dispatcher; all ranks must call if it sends them away."""
        return dispatcher.mix(self._hidden_TD.detach().requires_grad_(), self._routing, self._experts)


class _Mirror:
    """Ranks that send back at once what they are sent: nothing travels."""

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def hops(self) -> Sequence[AllToAll]:
        """Return none."""
        return ()

    def plan(self, counts_WC: Tensor) -> tuple[Tensor, list[Exchange]]:
        """Return the counts."""
        return counts_WC, [_Mirrored() for _ in range(counts_WC.shape[1])]


class _Mirrored:
    """Rows that stay."""

    def send(self, rows: Tensor) -> Tensor:
        """Return them."""
        return rows

    def send_back(self, rows: Tensor) -> Tensor:
        """Return them."""
        return rows

    def move(self, rows: Tensor, back: bool) -> Tensor:
        """Return them."""
        return rows

    def begin(self, rows: Tensor, back: bool) -> Arrival:
        """Return them as having come."""
        arrival = Arrival()
        arrival.set_result(rows)
        return arrival
