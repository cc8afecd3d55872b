"""A whole run: prepare, train step by step, and leave a model and a report behind."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from moesaic.checkpoint.atomic import atomic_folder
from moesaic.checkpoint.manifest import read_state
from moesaic.checkpoint.store import CheckpointStore
from moesaic.comm.failure import name_rank
from moesaic.comm.world import World, join_world
from moesaic.config.load import save_recipe
from moesaic.config.run import RunConfig
from moesaic.data.prepare import PreparedData
from moesaic.hw.allocator import keep_freed_memory
from moesaic.telemetry.metrics import truncate_after
from moesaic.tokenizer.tokenizer import Tokenizer
from moesaic.train.alike import check_alike
from moesaic.train.finish import finish
from moesaic.train.hooks import load_summary_writer
from moesaic.train.loop import run_steps
from moesaic.train.resume import check_resumable, choose_checkpoint
from moesaic.train.run_folder import RunFolder
from moesaic.train.schedule import schedule_layers
from moesaic.train.start import check_memory, new_state, open_tokenizer, prepare_data, resolve
from moesaic.units import format_count


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        interrupted: the signal that stopped it after a save; None when it ran to its last step.
        transformers_can_load: whether the exported folder is of a family that transformers knows.
        summary: the figures in summary.json; empty in processes other than the first.
    """

    folder: RunFolder
    interrupted: str | None
    transformers_can_load: bool
    summary: dict[str, Any]


def train(config: RunConfig, resume: str = "auto", console: Console | None = None) -> Outcome:
    """Train to the last step, or until a signal asks to stop.

    Args:
        config: the recipe.
        resume: 'auto', 'never' or the path of a checkpoint.
        console: where progress goes; None: standard error.

    Raises:
        MoesaicError: see `choose_checkpoint`, `prepare`, `train_step` and `Saver.wait`.
    """
    if config.train.tensorboard:
        load_summary_writer()  # what is missing is told before anything is written
    with join_world(config.parallel.timeout_s, config.train.device) as world:
        if not world.is_first:
            console = Console(quiet=True)
        console = console or Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        with name_rank(world):
            return _train_with(world, config, resume, console)


def _train_with(world: World, config: RunConfig, resume: str, console: Console) -> Outcome:
    """Train as one of the processes of a run, of which the first alone writes to the run folder."""
    check_alike(world, config)
    folder = RunFolder(Path(config.train.out).expanduser())
    with ExitStack() as stack:
        # The first makes what the others then find: the folder, the tokenizer, the tokenised data.
        with world.first_before_others():
            if world.is_first:
                folder.acquire()
                stack.callback(folder.release)
            begun = _begin(folder, config, resume, console, world)
        return _train_in(folder, begun, console, world)


@dataclass(frozen=True)
class _Begun:
    """What a run has before it has a model."""

    config: RunConfig
    store: CheckpointStore
    checkpoint: Path | None
    saved: Mapping[str, Any]
    prepared: PreparedData


def _begin(folder: RunFolder, config: RunConfig, resume: str, console: Console, world: World) -> _Begun:
    keep_freed_memory()
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    store = CheckpointStore(folder.checkpoints, config.checkpoint.keep_last, config.checkpoint.keep_best)
    checkpoint = choose_checkpoint(store, resume)
    tokenizer = (
        open_tokenizer(folder, config, checkpoint, console) if world.is_first else Tokenizer.load(folder.tokenizer)
    )
    config = resolve(config, tokenizer)
    check_memory(config, world)
    saved: Mapping[str, Any] = {}
    if checkpoint is not None:
        saved = read_state(checkpoint)
        for key, (now, then) in check_resumable(saved, config).items():
            console.print(f"{key} is {now}, was {then} before")
    prepared = prepare_data(config, tokenizer, console)
    if world.is_first and (checkpoint is None or not folder.tokenizer.is_dir()):
        with atomic_folder(folder.tokenizer) as target:
            tokenizer.save(target)
    return _Begun(config, store, checkpoint, saved, prepared)


def _train_in(folder: RunFolder, begun: _Begun, console: Console, world: World) -> Outcome:
    config, checkpoint = begun.config, begun.checkpoint
    state = new_state(config, begun.prepared, checkpoint is None, world)
    if checkpoint is not None:
        state.restore(checkpoint, begun.saved)
    if world.is_first:
        _write_start(folder, config, begun.store, state.step)
    schedule_layers(state, config, folder.schedule, checkpoint is not None, console)
    total, active = state.model.num_parameters()
    console.print(
        f"{format_count(total)} parameters, {format_count(active)} active for a token; "
        f"{format_count(begun.prepared.num_train_tokens)} training tokens; step {state.step} of {config.train.steps}"
    )
    interrupted = run_steps(state, config, folder, begun.store, console)
    if interrupted is not None:
        console.print(f"stopped by {interrupted} after step {state.step}, which is saved; --resume auto goes on")
        return Outcome(folder, interrupted, False, {})
    known, summary = finish(state, config, folder, begun.prepared)
    return Outcome(folder, None, known, summary)


def _write_start(folder: RunFolder, config: RunConfig, store: CheckpointStore, step: int) -> None:
    """Write what a run begins with, and drop what an earlier course left after this step."""
    save_recipe(config, folder.config)
    # In this order: a kill between the two must not leave a checkpoint without its metrics.
    store.drop_after(step)
    truncate_after(folder.metrics, step)
