"""A whole run: prepare, train step by step, and leave a model and a report behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from moesaic.checkpoint.atomic import atomic_folder
from moesaic.checkpoint.store import CheckpointStore, load_snapshot
from moesaic.config.load import save_recipe
from moesaic.config.run import RunConfig
from moesaic.hw.allocator import keep_freed_memory
from moesaic.telemetry.metrics import truncate_after
from moesaic.tokenizer.tokenizer import Tokenizer
from moesaic.train.finish import finish
from moesaic.train.hooks import load_summary_writer
from moesaic.train.loop import run_steps
from moesaic.train.resume import check_resumable, choose_checkpoint
from moesaic.train.run_folder import RunFolder
from moesaic.train.start import new_state, open_tokenizer, prepare_data, resolve
from moesaic.units import format_count


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        interrupted: the signal that stopped it after a save; None when it ran to its last step.
        transformers_can_load: whether the exported folder is of a family that transformers knows.
        summary: the figures in summary.json.
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
        MoesaicError: see `choose_checkpoint`, `prepare`, `train_step` and `CheckpointStore.save`.
    """
    if config.train.tensorboard:
        load_summary_writer()  # what is missing is told before anything is written
    console = console or Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    folder = RunFolder(Path(config.train.out).expanduser())
    folder.acquire()
    try:
        return _train_in(folder, config, resume, console)
    finally:
        folder.release()


def _train_in(folder: RunFolder, config: RunConfig, resume: str, console: Console) -> Outcome:
    keep_freed_memory()
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    store = CheckpointStore(folder.checkpoints, config.checkpoint.keep_last, config.checkpoint.keep_best)
    checkpoint = choose_checkpoint(store, resume)
    tokenizer = open_tokenizer(folder, config, checkpoint, console)
    config = resolve(config, tokenizer)
    snapshot = None if checkpoint is None else load_snapshot(checkpoint)
    if snapshot is not None:
        for key, (now, then) in check_resumable(snapshot, config).items():
            console.print(f"{key} is {now}, was {then} before")

    prepared = prepare_data(config, tokenizer, console)
    state = new_state(config, prepared, from_scratch=snapshot is None)
    if snapshot is not None:
        state.restore(snapshot)
    _write_start(folder, config, tokenizer, store, state.step)
    total, active = state.model.num_parameters()
    console.print(
        f"{format_count(total)} parameters, {format_count(active)} active for a token; "
        f"{format_count(prepared.num_train_tokens)} training tokens; step {state.step} of {config.train.steps}"
    )
    interrupted = run_steps(state, config, folder, store, console)
    if interrupted is not None:
        console.print(f"stopped by {interrupted} after step {state.step}, which is saved; --resume auto goes on")
        return Outcome(folder, interrupted, False, {})
    known, summary = finish(state, config, folder, prepared)
    return Outcome(folder, None, known, summary)


def _write_start(folder: RunFolder, config: RunConfig, tokenizer: Tokenizer, store: CheckpointStore, step: int) -> None:
    """Write what a run begins with, and drop what an earlier course left after this step."""
    if step == 0 or not folder.tokenizer.is_dir():
        with atomic_folder(folder.tokenizer) as target:
            tokenizer.save(target)
    save_recipe(config, folder.config)
    # In this order: a kill between the two must not leave a checkpoint without its metrics.
    store.drop_after(step)
    truncate_after(folder.metrics, step)
