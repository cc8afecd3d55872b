"""A recorded routing in place of a router's own choice: random weights route evenly, and hide every cache policy."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from moesaic.errors import DataError
from moesaic.memory.replay import read_trace
from moesaic.models.model import LanguageModel
from moesaic.nn.moe.router import Router, Routing


class ReplayedRouter(nn.Module):
    """A router that is computed, and whose choice is replaced by lines of a trace, one for each token, round and round.

    Weights stay those of the token's best experts, so that what is computed stays of the usual size.
    """

    def __init__(self, router: Router, lines: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._router = router
        self._lines = itertools.cycle(lines)

    def forward(self, hidden_TD: Tensor) -> Routing:
        """Route tokens [T, D]."""
        routing = self._router(hidden_TD)
        expert_ids_N = torch.tensor(list(itertools.chain(*itertools.islice(self._lines, len(hidden_TD)))))
        return replace(routing, expert_ids_N=expert_ids_N, chosen_expert_ids=expert_ids_N)


@contextmanager
def replay_routing(model: LanguageModel, trace: Path | str | None) -> Iterator[None]:
    """Let a model's layers take the experts of a recorded trace for as long as this lasts; None: its own.

    Raises:
        DataError: the trace cannot be read, or is of a model of other sizes.
    """
    if trace is None:
        yield
        return
    lines = read_trace(Path(trace))
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
