"""What the layers of a model cost on these ranks: their work, and measurements of it.

All ranks must call alike, and get the same figures: those of the slowest.
"""

import re
import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from moesaic.comm.all_to_all import AllToAll
from moesaic.comm.cost import Cost, fit_cost
from moesaic.comm.profile import agree, even_message, fit_all_gather, fit_all_reduce, fit_exchange, measure, sizes_up_to
from moesaic.models.model import LanguageModel
from moesaic.nn.moe.experts import Experts
from moesaic.ops.mixture import mix_experts
from moesaic.ops.permute import group_by_expert
from moesaic.parallel.part import local_part
from moesaic.parallel.pipeline import lend
from moesaic.parallel.schedule import Costs, Layer

# More does not change the line.
_MOST_PAIRS = 4096
_MOST_BYTES = 2**22
_REPEATS = 3
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
    message, pairs = int(work.message_bytes), min(_MOST_PAIRS, int(work.pairs))
    hops = tuple(fit_exchange(hop, message) for hop in all_to_all.hops)
    layer = _Timed(experts, dtype)
    times = [(size, *layer.measure(size)) for size in sizes_up_to(pairs)]
    costs = Costs(
        hops=hops,
        forward=fit_cost([(size, forward) for size, forward, _ in times]),
        backward=fit_cost([(size, backward) for size, _, backward in times]),
        reduce=fit_all_reduce(group, _MOST_BYTES),
        overlap=layer.measure_overlap(all_to_all, message, pairs),
    )
    return Profile(costs, fit_all_gather(group, _MOST_BYTES))


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
    """The experts of a layer, to be timed on rows that are drawn evenly."""

    def __init__(self, experts: Experts, dtype: torch.dtype) -> None:
        self._leaves = [local_part(weight).detach().requires_grad_() for weight in (experts.gate_up, experts.down)]
        self._dtype = dtype

    def measure(self, num_pairs: int) -> tuple[float, float]:
        """Return the seconds of forward and of backward, which adds gradients to those of another chunk."""
        forwards, backwards = [], []
        for _ in range(_REPEATS + 1):
            dist.barrier()
            began = time.perf_counter()
            mixed_RD = self._mix(num_pairs)
            computed = time.perf_counter()
            mixed_RD.backward(mixed_RD.detach())
            forwards.append(computed - began)
            backwards.append(time.perf_counter() - computed)
        return agree(statistics.median(forwards[1:])), agree(statistics.median(backwards[1:]))

    def measure_overlap(self, all_to_all: AllToAll, num_bytes: int, num_pairs: int) -> float:
        """Return the share of the shorter of both that vanishes when a message travels while experts compute."""
        exchange, rows = even_message(all_to_all, num_bytes)

        def both() -> None:
            arrival = exchange.begin(rows, False)
            self._mix(num_pairs)
            arrival.result()

        message = measure(lambda: exchange.begin(rows, False).result())
        compute = measure(lambda: self._mix(num_pairs))
        return min(1.0, max(0.0, (message + compute - measure(both)) / min(message, compute)))

    def _mix(self, num_pairs: int) -> Tensor:
        source = torch.Generator().manual_seed(0)
        (gate_up,), (down,) = (lend(leaf, self._dtype, 1) for leaf in self._leaves)
        rows_RD = torch.empty(num_pairs, gate_up.shape[2]).uniform_(-1, 1, generator=source).to(self._dtype)
        experts_N = torch.arange(num_pairs) % len(gate_up)
        permutation = group_by_expert(torch.arange(num_pairs), experts_N, num_pairs, len(gate_up))
        weights_N = torch.ones(num_pairs, requires_grad=True)
        return mix_experts(rows_RD.requires_grad_(), weights_N, gate_up, down, permutation)
