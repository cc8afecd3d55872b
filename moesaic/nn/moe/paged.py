"""Mixing experts whose weights are pages."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from torch import Tensor

from moesaic.memory.page_error import PageError
from moesaic.memory.pager import Pager
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Router, Routing
from moesaic.ops.paged_mixture import mix_in_waves
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import group_by_expert
from moesaic.ops.quant import QuantisedExperts

# Tokens at the end of each sequence whose choices tell what the next ones will choose.
_NUM_RECENT = 16
# Tokens of a pass that are guessed for, and pages that are guessed: of more, fewer are right.
_MOST_GUESSING = 4
_MOST_GUESSED = 6


class PagedDispatcher:
    """The experts of one layer are pages of a pager; the layer's own parameters hold nothing.

    Args:
        pager: which has them.
        layer: whose they are.
        following: the next layer with pages and its router, whose choice is guessed from this layer's tokens; None:
            nothing is guessed.
    """

    def __init__(self, pager: Pager, layer: int, following: tuple[int, Router] | None = None) -> None:
        self._pager = pager
        self._layer = layer
        self._following = following
        self._fields = pager.pool.fields

    def expect(self, routing: Routing) -> None:
        """Tell the pager which pages `mix` will need, all of them and no others."""
        self._pager.expect(self._layer, sorted(set(routing.expert_ids_N.tolist())))

    def mix(self, hidden_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """Mix as pages arrive; the sum over a token's experts has one order, whatever came first.

        Raises:
            PageError: a page cannot be read.
        """
        tokens, chosen = routing.token_ids_N.tolist(), routing.expert_ids_N.tolist()
        pairs: Permutation | Tensor
        if len(hidden_TD) == 1:  # all pairs are this token's, and need no grouping
            weights, pairs = routing.weights_N.unsqueeze(0), routing.expert_ids_N.unsqueeze(0)
        else:
            num_experts = self._pager.num_experts(self._layer)
            weights = routing.weights_N
            pairs = group_by_expert(routing.token_ids_N, routing.expert_ids_N, len(hidden_TD), num_experts)
        recent = choices_of_last(tokens, chosen, self._pager.step_lengths)
        waves = self._pager.waves(self._layer, sorted(set(chosen)), recent)
        self._guess(hidden_TD)
        try:
            return mix_in_waves(hidden_TD, weights, self._slots(experts), pairs, waves)
        except PageError as failure:
            failure.tokens = [token for token, expert in zip(tokens, chosen, strict=True) if expert == failure.expert]
            raise

    def _guess(self, hidden_TD: Tensor) -> None:
        """Let the next router choose from what this layer reads, which the residual stream changes only a little."""
        if self._following is None or len(hidden_TD) > _MOST_GUESSING or not self._pager.wants_guesses:
            return
        layer, router = self._following
        routing = router(hidden_TD)
        order = routing.weights_N.argsort(descending=True, stable=True)
        likeliest = dict.fromkeys(routing.expert_ids_N[order].tolist())
        self._pager.guess(layer, list(likeliest)[:_MOST_GUESSED])

    def _slots(self, experts: Experts) -> tuple[Tensor, Tensor] | QuantisedExperts:
        """Return the slots as experts: floats, or of a few bits where records have scales."""
        if "gate_up_scales" not in self._fields:
            return self._fields["gate_up"], self._fields["down"]
        width, hidden_width = experts.down.shape[1:]
        return QuantisedExperts(**self._fields, width=width, hidden_width=hidden_width)


def choices_of_last(tokens: Sequence[int], experts: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield what the last tokens of all sequences chose: for each token step, the newest last, its experts.

    Args:
        tokens, experts: pairs; tokens count through all sequences, one after another.
        lengths: tokens of each sequence.
    """
    step_of = {
        end - 1 - back: -1 - back
        for end, length in zip(accumulate(lengths), lengths, strict=True)
        for back in range(min(length, _NUM_RECENT))
    }
    steps: list[set[int]] = [set() for _ in range(_NUM_RECENT)]
    for token, expert in zip(tokens, experts, strict=True):
        if token in step_of:
            steps[step_of[token]].add(expert)
    yield from (sorted(step) for step in steps if step)
