"""How many chunks each mixture of a run is computed in: as asked, or by what this machine does."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from moesaic.checkpoint.load import DTYPES
from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError
from moesaic.flush import replace_text
from moesaic.parallel.apply import apply_schedule
from moesaic.parallel.expert import AllToAllDispatcher
from moesaic.parallel.gradient import SharedGradients
from moesaic.parallel.profile import is_faster, list_work, measure_profile
from moesaic.parallel.schedule import DEGREES, Schedule, choose_schedule, predict
from moesaic.train.state import TrainState


def schedule_layers(state: TrainState, config: RunConfig, path: Path, goes_on: bool, console: Console) -> None:
    """Have the mixtures of a run computed in chunks where that pays; all processes must call.

    Args:
        state: before the first step.
        path: where what was measured and chosen is written, for `auto`.
        goes_on: whether the run has taken steps before. It keeps what was chosen for as many ranks, so that sums are
            added up in the same order.
        console: is told.

    Raises:
        ConfigError: chunks are asked for on a GPU.
    """
    asked = config.parallel.schedule
    if state.world.device.type == "cuda":
        _check_whole(asked)
        return
    mixtures = list(state.model.moe_layers().values())
    dispatchers = [moe.dispatcher for moe in mixtures if isinstance(moe.dispatcher, AllToAllDispatcher)]
    if asked == "off" or not dispatchers:
        return
    assert isinstance(state.gradients, SharedGradients), "experts are spread over ranks"
    if asked != "auto":
        apply_schedule(state.model, Schedule((asked,) * len(mixtures)), state.gradients)
        return
    world = state.world
    schedule = _read(path, world.size, len(mixtures)) if goes_on else None
    # The first process must not write before all have read.
    if world.largest(int(schedule is None)):
        schedule, told = _measure(state, config, dispatchers[0])
        for line in told.pop("told"):
            console.print(line)
        if world.is_first:
            replace_text(path, json.dumps({"ranks": world.size, **asdict(schedule), **told}, indent=1) + "\n")
    assert schedule is not None, "read or measured"
    chunks = ", ".join(map(str, sorted(set(schedule.degrees))))
    console.print(f"tokens travel in {chunks} {'chunk' if chunks == '1' else 'chunks'} a layer")
    apply_schedule(state.model, schedule, state.gradients)


def _check_whole(asked: str | int) -> None:
    if asked not in ("auto", "off", 1):
        raise ConfigError(
            f"parallel.schedule is {asked}, but on a GPU a layer's tokens travel whole",
            "leave it out, or set parallel.schedule = 'off'",
        )


def _measure(state: TrainState, config: RunConfig, dispatcher: AllToAllDispatcher) -> tuple[Schedule, dict[str, Any]]:
    dtype = DTYPES[str(config.train.precision)]
    num_tokens = max(1, config.train.micro_batch * config.data.sequence_length // state.world.size)
    work = list_work(state.model, num_tokens, dtype, dispatcher.all_to_all.size)
    experts = next(iter(state.model.moe_layers().values())).experts
    profile = measure_profile(dispatcher.all_to_all, experts, dtype, work[0])
    seconds = {
        way: {degree: predict(profile.costs, work[0], degree, way == "backward") for degree in DEGREES}
        for way in ("forward", "backward")
    }
    told = {"work": [asdict(layer) for layer in work], "profile": asdict(profile), "predicted_s": seconds}
    schedule = choose_schedule(profile.costs, work, config.parallel.bucket_bytes)
    degree, lines = schedule.degrees[0], profile.tell()
    # A prediction is no better than what it is made of: chunks must also be faster once, with all that is around them.
    if degree > 1 and not is_faster(dispatcher.all_to_all, experts, dtype, work[0], degree):
        lines.append(f"{degree} chunks promised to be faster than a whole layer, and were not")
        schedule = Schedule((1,) * len(work))
    return schedule, {**told, "told": lines}


def _read(path: Path, num_ranks: int, num_mixtures: int) -> Schedule | None:
    """Return what was chosen before; None where that was for other ranks, or is not there or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        degrees, released = tuple(found["degrees"]), found["released_bytes"]
        fits = found["ranks"] == num_ranks and len(degrees) == num_mixtures and set(degrees) <= set(DEGREES)
        if released is not None:
            released = tuple(map(int, released))
            fits = fits and len(released) == num_mixtures
        return Schedule(degrees, released) if fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
