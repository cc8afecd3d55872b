"""A mixture over ranks in any number of chunks, timed beside the whole one; and what was predicted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.bench.messages import take_turns
from moesaic.comm.all_to_all import AllToAll
from moesaic.comm.choose import choose_all_to_all
from moesaic.comm.cost import Cost
from moesaic.comm.mesh import Mesh
from moesaic.config.model import ModelConfig
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.layer import MoELayer
from moesaic.parallel.batch import SharedBatch
from moesaic.parallel.expert import AllToAllDispatcher
from moesaic.parallel.pipeline import PipelinedDispatcher
from moesaic.parallel.profile import measure_profile
from moesaic.parallel.schedule import DEGREES, Costs, Layer, choose_degree, predict

_WIDTH = 512
_CHOSEN = 2
_TOKENS = 512
# The width of the experts with which the others are compared, and what it is rounded to.
_PROBE, _STEP, _WIDEST = 512, 64, 8192


def time_chunks(mesh: Mesh, repeats: int) -> dict[str, Any]:
    """Time forward and backward of a layer whose messages and experts take as long, whole and in chunks.

    Experts are as wide as makes them take half of the time, by what both cost here.
    """
    all_to_all = choose_all_to_all(mesh, "auto", _TOKENS * _CHOSEN, 4 * _WIDTH)
    size = all_to_all.size
    rows = _TOKENS * size * (1 - (1 - 1 / size) ** _CHOSEN)
    work = Layer(_TOKENS, rows * _WIDTH * 4, _TOKENS * _CHOSEN)
    probe = measure_profile(all_to_all, _experts(_PROBE, size), torch.float32, work).costs
    hidden = _match(probe, work)
    layer = _layer(mesh, all_to_all, hidden)
    profile = measure_profile(all_to_all, layer.experts, torch.float32, work)
    costs = profile.costs
    step = _stepper(layer)

    def run(degree: int) -> Callable[[], None]:
        dispatcher = AllToAllDispatcher(all_to_all) if degree == 1 else PipelinedDispatcher(all_to_all, degree)
        return lambda: step(dispatcher)

    seconds = take_turns({str(degree): run(degree) for degree in DEGREES}, repeats)
    messages = 4 * sum(hop.seconds(work.message_bytes) for hop in costs.hops)
    computing = costs.forward.seconds(work.pairs) + costs.backward.seconds(work.pairs)
    predicted = {degree: predict(costs, work, degree, False) + predict(costs, work, degree, True) for degree in DEGREES}
    return {
        "T": _TOKENS * size,
        "D": _WIDTH,
        "F": hidden,
        "E": 2 * size,
        "K": _CHOSEN,
        "dtype": "float32",
        "all_to_all": "flat" if len(costs.hops) == 1 else "hierarchical",
        "share_of_messages": round(messages / (messages + computing), 3),
        "profile": profile.tell(),
        "ms": {degree: round(each * 1e3, 2) for degree, each in seconds.items()},
        "predicted_ms": {str(degree): round(each * 1e3, 2) for degree, each in predicted.items()},
        "chosen": choose_degree(costs, work),
        "best": int(min(seconds, key=lambda degree: seconds[degree])),
    }


def _match(costs: Costs, work: Layer) -> int:
    """Return the width of experts that takes as long as the messages do."""
    messages = 4 * sum(hop.seconds(work.message_bytes) for hop in costs.hops)
    computing = sum(Cost.seconds(cost, work.pairs) for cost in (costs.forward, costs.backward))
    return min(_WIDEST, max(_STEP, round(_PROBE * messages / computing / _STEP) * _STEP))


def _experts(hidden: int, num_ranks: int) -> Experts:
    """Return this rank's two of the experts."""
    experts = Experts(2, _WIDTH, hidden)
    source = torch.Generator().manual_seed(num_ranks)
    for weight in experts.parameters():
        nn.init.normal_(weight, std=weight.shape[-1] ** -0.5, generator=source)
    return experts


def _layer(mesh: Mesh, all_to_all: AllToAll, hidden: int) -> MoELayer:
    config = ModelConfig(
        model_type="mixtral",
        vocab_size=1,
        hidden_size=_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=hidden,
        num_experts=2 * all_to_all.size,
        num_experts_per_tok=_CHOSEN,
    )
    with torch.device("meta"):
        layer = MoELayer(config)
    layer.experts = _experts(hidden, all_to_all.size)
    source = torch.Generator().manual_seed(0)
    layer.router.weight = nn.Parameter(torch.randn(2 * all_to_all.size, _WIDTH, generator=source) * _WIDTH**-0.5)
    layer.batch = SharedBatch(mesh.everyone)
    return layer


def _stepper(layer: MoELayer) -> Callable[[Any], None]:
    source = torch.Generator().manual_seed(layer.batch.place(_TOKENS)[0])
    hidden_TD, grad_TD = (torch.randn(_TOKENS, _WIDTH, generator=source) for _ in range(2))
    hidden_TD.requires_grad_()

    def step(dispatcher: Any) -> None:
        layer.dispatcher = dispatcher
        layer.zero_grad(set_to_none=True)
        hidden_TD.grad = None
        mixed_TD: Tensor = layer(hidden_TD.unsqueeze(0)).hidden_BSD[0]
        mixed_TD.backward(grad_TD)

    return step
