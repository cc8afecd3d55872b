"""A mixture over ranks in any number of chunks, timed beside the whole one; and what was predicted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.bench.compare import check_equal
from moesaic.bench.messages import take_turns
from moesaic.comm.all_to_all import AllToAll
from moesaic.comm.choose import choose_all_to_all
from moesaic.comm.mesh import Mesh
from moesaic.config.model import ModelConfig
from moesaic.models.model import build_model
from moesaic.nn.init import init_weights
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.layer import MoELayer
from moesaic.parallel.apply import apply_parallel, apply_schedule, share_gradients
from moesaic.parallel.batch import SharedBatch
from moesaic.parallel.expert import AllToAllDispatcher
from moesaic.parallel.part import local_part
from moesaic.parallel.pipeline import PipelinedDispatcher
from moesaic.parallel.profile import list_work, measure_profile
from moesaic.parallel.schedule import (
    DEGREES,
    Costs,
    Layer,
    Schedule,
    choose_degree,
    plan_gradients,
    predict,
    predict_backward,
)

_WIDTH = 512
_CHOSEN = 2
_TOKENS = 512
_BUCKET_BYTES = 2**20
# On a slow link a step takes seconds: of so many turns one is taken.
_RARELY = 3
# Widths of experts: the first that is tried, the least, of which all are multiples, and the most.
_PROBE, _STEP, _WIDEST = 512, 64, 8192
_TRIES, _NEAR = 4, 0.05


def time_chunks(mesh: Mesh, repeats: int) -> dict[str, Any]:
    """Time forward and backward of a layer whose messages and experts take as long, whole and in chunks.

    Experts are as wide as makes them take half of the time, by what both cost here.
    """
    all_to_all = choose_all_to_all(mesh, "auto", _TOKENS * _CHOSEN, 4 * _WIDTH)
    size = all_to_all.size
    rows = _TOKENS * size * (1 - (1 - 1 / size) ** _CHOSEN)
    work = Layer(_TOKENS, rows * _WIDTH * 4, _TOKENS * _CHOSEN)
    hidden = _PROBE
    for _ in range(_TRIES):
        profile = measure_profile(all_to_all, _experts(hidden, size), torch.float32, work)
        share = _share_of_messages(profile.costs, work)
        if abs(share - 0.5) < _NEAR or (share > 0.5 and hidden == _WIDEST) or (share < 0.5 and hidden == _STEP):
            break
        hidden = min(_WIDEST, max(_STEP, round(hidden * share / (1 - share) / _STEP) * _STEP))
    costs = profile.costs
    layer = _layer(mesh, all_to_all, hidden)
    step = _stepper(layer)
    expected_TD = step(AllToAllDispatcher(all_to_all))
    for degree in DEGREES:
        check_equal(f"{degree} chunks", step(PipelinedDispatcher(all_to_all, degree)), expected_TD)

    def run(degree: int) -> Callable[[], object]:
        dispatcher = AllToAllDispatcher(all_to_all) if degree == 1 else PipelinedDispatcher(all_to_all, degree)
        return lambda: step(dispatcher)

    seconds = take_turns({str(degree): run(degree) for degree in DEGREES}, repeats)
    predicted = {degree: predict(costs, work, degree, False) + predict(costs, work, degree, True) for degree in DEGREES}
    return {
        "T": _TOKENS * size,
        "D": _WIDTH,
        "F": hidden,
        "E": 2 * size,
        "K": _CHOSEN,
        "dtype": "float32",
        "all_to_all": "flat" if len(costs.hops) == 1 else "hierarchical",
        "share_of_messages": round(_share_of_messages(costs, work), 3),
        "profile": profile.tell(),
        "ms": {degree: round(each * 1e3, 2) for degree, each in seconds.items()},
        "predicted_ms": {str(degree): round(each * 1e3, 2) for degree, each in predicted.items()},
        "chosen": choose_degree(costs, work),
        "best": int(min(seconds, key=lambda degree: seconds[degree])),
    }


def time_gradients(mesh: Mesh, repeats: int) -> dict[str, Any]:
    """Time forward and backward of a small model: whole; in chunks; and in chunks with gradients that wait for them."""
    all_to_all = choose_all_to_all(mesh, "auto", _TOKENS * _CHOSEN, 4 * _WIDTH)
    config = _config(_PROBE, all_to_all.size, num_layers=3)
    plain = apply_parallel(build_model(config), mesh, all_to_all)
    work = list_work(plain, _TOKENS, torch.float32, all_to_all.size)
    experts = next(iter(plain.moe_layers().values())).experts
    nn.init.normal_(local_part(experts.gate_up), std=0.02)
    nn.init.normal_(local_part(experts.down), std=0.02)
    costs = measure_profile(all_to_all, experts, torch.float32, work[0]).costs
    degrees = tuple(max(2, choose_degree(costs, layer)) for layer in work)
    schedules = {
        "whole": Schedule((1,) * len(work)),
        "chunks": Schedule(degrees),
        "chunks, gradients wait": Schedule(degrees, plan_gradients(costs, work, degrees)),
    }
    runs = {name: _model_step(config, mesh, all_to_all, schedule) for name, schedule in schedules.items()}
    seconds = take_turns(runs, -(-repeats // _RARELY))
    return {
        "degrees": degrees,
        "released_bytes": schedules["chunks, gradients wait"].released_bytes,
        "gradient_bytes": [layer.gradient_bytes for layer in work],
        "ms": {name: round(each * 1e3, 1) for name, each in seconds.items()},
        "predicted_backward_ms": {
            name: round(predict_backward(costs, work, schedule) * 1e3, 1) for name, schedule in schedules.items()
        },
    }


def _model_step(config: ModelConfig, mesh: Mesh, all_to_all: AllToAll, schedule: Schedule) -> Callable[[], None]:
    model = build_model(config)
    init_weights(model, config, 0)
    model = apply_parallel(model, mesh, all_to_all)
    gradients = share_gradients(model, mesh, _BUCKET_BYTES)
    apply_schedule(model, schedule, gradients)
    ids_BS = torch.arange(2 * _TOKENS).view(1, -1)[:, ::2] % config.vocab_size

    def step() -> None:
        gradients.clear()
        summed, _ = model.score(ids_BS, ids_BS)
        gradients.expect_last()
        summed.backward()
        gradients.complete()

    return step


def _share_of_messages(costs: Costs, work: Layer) -> float:
    """Return the share of a whole layer's time, forward and backward, in which messages travel."""
    messages = 4 * sum(hop.seconds(work.message_bytes) for hop in costs.hops)
    return messages / (messages + costs.forward.seconds(work.pairs) + costs.backward.seconds(work.pairs))


def _experts(hidden: int, num_ranks: int) -> Experts:
    """Return this rank's two of the experts."""
    experts = Experts(2, _WIDTH, hidden)
    source = torch.Generator().manual_seed(num_ranks)
    for weight in experts.parameters():
        nn.init.normal_(weight, std=weight.shape[-1] ** -0.5, generator=source)
    return experts


def _config(hidden: int, num_ranks: int, num_layers: int = 1) -> ModelConfig:
    return ModelConfig(
        model_type="mixtral",
        vocab_size=2048,
        hidden_size=_WIDTH,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        intermediate_size=hidden,
        num_experts=2 * num_ranks,
        num_experts_per_tok=_CHOSEN,
    )


def _layer(mesh: Mesh, all_to_all: AllToAll, hidden: int) -> MoELayer:
    config = _config(hidden, all_to_all.size)
    with torch.device("meta"):
        layer = MoELayer(config)
    layer.experts = _experts(hidden, all_to_all.size)
    source = torch.Generator().manual_seed(0)
    layer.router.weight = nn.Parameter(torch.randn(2 * all_to_all.size, _WIDTH, generator=source) * _WIDTH**-0.5)
    layer.batch = SharedBatch(mesh.everyone)
    return layer


def _stepper(layer: MoELayer) -> Callable[[Any], Tensor]:
    source = torch.Generator().manual_seed(layer.batch.place(_TOKENS)[0])
    hidden_TD, grad_TD = (torch.randn(_TOKENS, _WIDTH, generator=source) for _ in range(2))
    hidden_TD.requires_grad_()

    def step(dispatcher: Any) -> Tensor:
        layer.dispatcher = dispatcher
        layer.zero_grad(set_to_none=True)
        hidden_TD.grad = None
        mixed_TD: Tensor = layer(hidden_TD.unsqueeze(0)).hidden_BSD[0]
        mixed_TD.backward(grad_TD)
        return mixed_TD.detach()

    return step
