"""A recorded or an even routing in place of a router's own choice.

Random weights have no favourites among experts, as a cache policy would need, and yet, in deep layers, they choose
nearly the same ones for every token that follows another: neither a text's routing nor an even one.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from moesaic.errors import DataError
from moesaic.memory.replay import Trace, read_trace
from moesaic.models.model import LanguageModel
from moesaic.nn.moe.batch import WHOLE, Batch
from moesaic.nn.moe.router import Router, Routing

# In place of a recorded trace.
EVEN = "even"
_NUM_DRAWN = 1024


class ReplayedRouter(nn.Module):
    """A router that is computed, and whose choice is replaced by lines of a trace, one for each token, round and round.

    Weights stay those of the token's best experts, so that what is computed stays of the usual size.
    """

    def __init__(self, router: Router, lines: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._router = router
        self._lines = itertools.cycle(lines)

    def forward(self, hidden_TD: Tensor, batch: Batch = WHOLE) -> Routing:
        """Route tokens [T, D]."""
        routing = self._router(hidden_TD, batch)
        expert_ids_N = torch.tensor(list(itertools.chain(*itertools.islice(self._lines, len(hidden_TD)))))
        return replace(routing, expert_ids_N=expert_ids_N, chosen_expert_ids=expert_ids_N)


def draw_evenly(model: LanguageModel) -> Trace:
    """Return the routing of some tokens, each of whose choices is independent of all others."""
    drawn, config = random.Random(0), model.config
    return [
        [sorted(drawn.sample(range(config.num_experts), config.experts_per_token)) for _ in model.moe_layers()]
        for _ in range(_NUM_DRAWN)
    ]


@contextmanager
def replay_routing(model: LanguageModel, trace: Path | str | None) -> Iterator[None]:
    """Let a model's layers take other experts than their own choice for as long as this lasts.

    Args:
        model: whose routers are replaced meanwhile.
        trace: a recorded one; `EVEN`: drawn, every expert as often as another; None: the model's own.

    Raises:
        DataError: the trace cannot be read, or is of a model of other sizes.
    """
    if trace is None:
        yield
        return
    lines = draw_evenly(model) if trace == EVEN else read_trace(Path(trace))
    mixtures = model.moe_layers()
    config = model.config
    counts = {(len(line), len(experts)) for line in lines for experts in line}
    highest = max(expert for line in lines for experts in line for expert in experts)
    if counts != {(len(mixtures), config.experts_per_token)} or highest >= config.num_experts:
        raise DataError(
            f"'{trace}' is no trace of {len(mixtures)} layers with {config.experts_per_token} of "
            f"{config.num_experts} experts a token",
            "record one of this model, or choose the model that it is of",
        )
    routers = {layer: moe.router for layer, moe in mixtures.items()}
    for index, (layer, moe) in enumerate(mixtures.items()):
        moe.router = ReplayedRouter(routers[layer], [line[index] for line in lines])  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, moe in mixtures.items():
            moe.router = routers[layer]
