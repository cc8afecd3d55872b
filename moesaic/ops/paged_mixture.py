"""The mixture of experts whose weights lie in the slots of a pool, and come there in waves.

A wave says in which slot each of its experts lies. Their rows are computed before the next wave is drawn, so that who
brings experts may then put others into the same slots. A row is written where it stands among all rows, and a token's
rows are summed in the order of its pairs once none is missing: what came when, and where it lay, never shows.

    expert          0  1  2  3  4            rows by expert   0 0 1 3 3 3 4
    first wave      1  .  .  0  .     slots 3|0               x x . x x x .
    second wave     .  0  .  .  1     slots 1|4               x x x x x x x   then the sums
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.backend import choose_backend
from moesaic.ops.cpu.paged_mixture import CompiledRows
from moesaic.ops.expert_mlp import apply_expert, check_expert_mlp, list_counts, list_runs
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import as_permutation, check_routing, combine, permute
from moesaic.ops.quant import QuantisedExperts, check_quantised
from moesaic.ops.quantised_mixture import apply_quantised_expert, check_tokens
from moesaic.ops.tensor import are_items_whole, check_no_gradients, check_tensor

Experts = tuple[Tensor, Tensor] | QuantisedExperts

_HOST = torch.device("cpu")
_WAVE = "places_E, a wave,"
_ONCE = "bring each expert that has rows in exactly one wave"
_NO_GRADIENTS = "experts that come in waves"


def mix_in_waves(
    hidden_TD: Tensor, weights: Tensor, experts: Experts, routing: Permutation | Tensor, waves: Iterable[Tensor]
) -> Tensor:
    """Return what `mix_experts` or `mix_experts_quantised` does: on the CPU bit for bit.

    There are no gradients. On CUDA torch computes, expert by expert. Memory beside the result: N D elements for the
    rows, in torch twice, and what the experts of a wave take.

    Args:
        hidden_TD: [T, D] of any floating dtype; of float32 or bfloat16 for quantised experts.
        weights: routing weights of any floating dtype, [N] in the order of the pairs, or as the ids, [T, K].
        experts: gate_up [S, 2F, D] and down [S, D, F] of the dtype of hidden_TD, or quantised ones, each item of the
            first dimension a slot. Slots may lie apart; what is in one is contiguous.
        routing: from `group_by_expert`; or, where every token has K experts, their ids, int64 [T, K].
        waves: of places_E, int64 [E] on the CPU: the slot of each expert of the wave, -1 for the others. An expert with
            rows is in exactly one wave. Drawing a wave tells that the slots of the one before are no longer read.
            Should anything fail, an iterator that has `close` is closed.

    Raises:
        UnsupportedError: a tensor has another shape, dtype, device or layout, or asks for a gradient; or the waves
            leave out an expert that has rows, or bring it twice, or name a slot that is not there.
    """
    drawn = iter(waves)
    try:
        return _mix(hidden_TD, weights, experts, routing, drawn)
    except BaseException:
        close = getattr(drawn, "close", None)
        if close is not None:
            close()
        raise


class ExpertRows(Protocol):
    """Expert outputs of all rows [N, D], each of which is written once."""

    def compute(self, places_E: Tensor, is_last: bool) -> Tensor | None:
        """Compute the rows of the experts that have a place; after the last ones, return the sums [T, D]."""
        ...


class LoopedRows:
    """Expert outputs of all rows, in torch, expert by expert."""

    def __init__(
        self, hidden_TD: Tensor, weights: Tensor, experts: Experts, routing: Permutation | Tensor, num_experts: int
    ) -> None:
        self._weights_N, self._experts = weights.flatten(), experts
        self._permutation = as_permutation(routing, num_experts)
        self._hidden_ND = permute(hidden_TD, self._permutation)
        self._out_ND = torch.empty_like(self._hidden_ND)
        self._runs = list_runs(list_counts(self._permutation.counts_E, len(self._hidden_ND)))

    def compute(self, places_E: Tensor, is_last: bool) -> Tensor | None:
        """Do what `ExpertRows` says."""
        places = places_E.tolist()
        for expert, run in self._runs:
            if places[expert] >= 0:
                self._apply(places[expert], self._hidden_ND[run], self._out_ND[run])
        return combine(self._out_ND, self._weights_N, self._permutation) if is_last else None

    def _apply(self, slot: int, hidden_ND: Tensor, out_ND: Tensor) -> None:
        if isinstance(self._experts, QuantisedExperts):
            out_ND.copy_(apply_quantised_expert(hidden_ND, self._experts, slot))
            return
        gate_up, down = self._experts
        apply_expert(
            hidden_ND, gate_up[slot], down[slot], hidden_ND.new_empty(len(hidden_ND), gate_up.shape[1]), out_ND
        )


class _Missing:
    """The experts with rows that no wave has brought yet.

    Lists of Python: a single token asks for few experts, and each operator of torch would cost it more than they all.
    """

    def __init__(self, needed: Collection[int], num_experts: int, num_slots: int) -> None:
        self._needed, self._left = needed, set(needed)
        self._num_experts, self._num_slots = num_experts, num_slots

    def remove(self, places_E: Tensor) -> bool:
        """Take out the experts of a wave; return whether none is missing any more."""
        check_tensor(_WAVE, places_E, (self._num_experts,), torch.int64, _HOST)
        places = places_E.tolist()
        for expert in self._needed:
            if places[expert] == -1:
                continue
            if not 0 <= places[expert] < self._num_slots:
                text = f"{_WAVE} has expert {expert} in slot {places[expert]}"
                raise UnsupportedError(text, f"give -1, or one of {self._num_slots} slots")
            if expert not in self._left:
                raise UnsupportedError(f"expert {expert} is in two waves", _ONCE)
            self._left.remove(expert)
        return not self._left

    def check_none(self) -> None:
        """Check that the waves brought all that is needed."""
        if self._left:
            raise UnsupportedError(f"expert {min(self._left)} has rows and is in no wave", _ONCE)


def _mix(
    hidden_TD: Tensor, weights: Tensor, experts: Experts, routing: Permutation | Tensor, waves: Iterator[Tensor]
) -> Tensor:
    num_slots = _check_experts(hidden_TD, weights, experts)
    num_experts = 0 if isinstance(routing, Tensor) else len(routing.counts_E)
    check_routing(routing, weights, len(hidden_TD), num_experts, hidden_TD.device)
    places_E = next(waves, None)
    if isinstance(routing, Tensor) and places_E is not None:
        check_tensor(_WAVE, places_E, (None,))
        num_experts = len(places_E)

    missing = _Missing(_list_needed(routing, num_experts), num_experts, num_slots)
    implementation = CompiledRows if choose_backend("mix_in_waves", hidden_TD) == "compiled" else LoopedRows
    rows: ExpertRows = implementation(hidden_TD, weights, experts, routing, num_experts)
    out_TD = None
    while places_E is not None:
        is_last = missing.remove(places_E)
        if out_TD is None:
            out_TD = rows.compute(places_E, is_last)
        places_E = next(waves, None)
    missing.check_none()
    if out_TD is None:  # no wave came, and none was needed
        out_TD = rows.compute(torch.full((num_experts,), -1), is_last=True)
    assert out_TD is not None, "the sums come with the last rows"
    return out_TD


def _check_experts(hidden_TD: Tensor, weights: Tensor, experts: Experts) -> int:
    """Check the slots and what they are to be multiplied with; return their number."""
    if isinstance(experts, QuantisedExperts):
        check_quantised("experts", experts)
        check_tokens("hidden_TD", hidden_TD, experts)
        check_no_gradients(_NO_GRADIENTS, hidden_TD, weights)
        fields = ("gate_up", "gate_up_scales", "down", "down_scales")
        slots = {f"experts.{field}": getattr(experts, field) for field in fields}
    else:
        gate_up, down = experts
        check_expert_mlp("hidden_TD", hidden_TD, gate_up, down)
        check_no_gradients(_NO_GRADIENTS, hidden_TD, weights, gate_up, down)
        slots = {"gate_up": gate_up, "down": down}
    for name, tensor in slots.items():
        if not tensor.is_contiguous() and not are_items_whole(tensor):
            raise UnsupportedError(
                f"{name} has the strides {tensor.stride()}", "give slots that are contiguous within, and do not overlap"
            )
    return len(tensor)


def _list_needed(routing: Permutation | Tensor, num_experts: int) -> Collection[int]:
    """Return the experts that have rows."""
    if not isinstance(routing, Tensor):
        return routing.counts_E.nonzero().flatten().tolist()
    needed = set(routing.flatten().tolist())
    if needed and not 0 <= min(needed) <= max(needed) < num_experts:
        raise UnsupportedError(
            f"routing holds expert ids from {min(needed)} to {max(needed)}, the waves are of {num_experts} experts",
            "give ids of experts that each places_E has a number for",
        )
    return needed
