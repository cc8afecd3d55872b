"""A whole run: prepare, train step by step, and leave a model and a report behind."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from moesaic.checkpoint.atomic import atomic_folder
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import DTYPES, load_model
from moesaic.checkpoint.store import CheckpointStore, load_snapshot
from moesaic.config.load import save_recipe
from moesaic.config.model import ModelConfig
from moesaic.config.run import RunConfig
from moesaic.data.baseline import bigram_loss, unigram_loss
from moesaic.data.loader import Loader
from moesaic.data.prepare import PreparedData, prepare
from moesaic.data.vocabulary import fit_tokenizer
from moesaic.errors import ConfigError
from moesaic.hw.allocator import keep_freed_memory
from moesaic.models.model import LanguageModel, build_model
from moesaic.nn.init import init_weights
from moesaic.optim.table import build_optimizer
from moesaic.telemetry.metrics import read_metrics, truncate_after
from moesaic.telemetry.report import write_report
from moesaic.tokenizer.tokenizer import Tokenizer
from moesaic.train.hooks import EvaluateHook, Hook, MetricsHook, SaveHook, TensorBoardHook
from moesaic.train.interrupt import catch_signals
from moesaic.train.progress import ProgressHook
from moesaic.train.resume import check_resumable, choose_checkpoint
from moesaic.train.row import metrics_row
from moesaic.train.run_folder import RunFolder
from moesaic.train.state import TrainState
from moesaic.train.step import train_step
from moesaic.units import format_count

# Beyond this, counting word pairs for the baselines of the report takes too long.
_BASELINE_TOKENS = 20_000_000


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
    console = console or Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    folder = RunFolder(Path(config.train.out))
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
    tokenizer = _open_tokenizer(folder, config, checkpoint, console)
    config = _with_special_tokens(config, tokenizer)
    snapshot = None if checkpoint is None else load_snapshot(checkpoint)
    if snapshot is not None:
        for key, (now, then) in check_resumable(snapshot, config).items():
            console.print(f"{key} is {now}, was {then} before")

    prepared = _prepare(config, tokenizer, console)
    state = _new_state(config, prepared, from_scratch=snapshot is None)
    if snapshot is not None:
        state.restore(snapshot)
    _write_start(folder, config, tokenizer, store, state.step)
    total, active = state.model.num_parameters()
    console.print(
        f"{format_count(total)} parameters, {format_count(active)} active for a token; "
        f"{format_count(prepared.num_train_tokens)} training tokens; step {state.step} of {config.train.steps}"
    )
    interrupted = _run_steps(state, config, folder, store, console)
    if interrupted is not None:
        console.print(f"stopped by {interrupted} after step {state.step}, which is saved; --resume auto goes on")
        return Outcome(folder, interrupted, False, {})
    return _finish(state, config, folder, prepared)


def _run_steps(
    state: TrainState, config: RunConfig, folder: RunFolder, store: CheckpointStore, console: Console
) -> str | None:
    """Train until the last step or a signal; return the signal."""
    num_steps = config.train.steps
    saving = SaveHook(config, store)
    with catch_signals() as interrupt, _hooks(state, config, folder, saving, console) as hooks:
        while state.step < num_steps and interrupt.received is None:
            began = time.monotonic()
            batch = state.loader.next_batch()
            result = train_step(state.model, state.optimizer, batch, state.step + 1, config)
            step_seconds = time.monotonic() - began
            state.step += 1
            state.tokens += result.num_tokens
            state.seconds += step_seconds
            row = metrics_row(state, result, step_seconds, num_steps)
            for hook in hooks:
                hook.after_step(state, row)
        if interrupt.received is not None and state.step < num_steps:
            saving.save(state)
            return interrupt.received
    return None


@contextmanager
def _hooks(
    state: TrainState, config: RunConfig, folder: RunFolder, saving: SaveHook, console: Console
) -> Iterator[list[Hook]]:
    """Give the hooks in their order: a row is complete before it is written, and written before it is saved."""
    with ExitStack() as stack:
        hooks: list[Hook] = []

        def add(hook: Hook) -> None:
            hooks.append(hook)
            stack.callback(hook.close)

        add(EvaluateHook(config))
        add(MetricsHook(folder.metrics))
        if config.train.tensorboard:
            add(TensorBoardHook(folder.path / "tensorboard", state.step + 1))
        add(saving)
        add(ProgressHook(console, config.train.steps, state.step))
        yield hooks


def _open_tokenizer(folder: RunFolder, config: RunConfig, checkpoint: Path | None, console: Console) -> Tokenizer:
    if checkpoint is not None and folder.tokenizer.is_dir():
        return Tokenizer.load(folder.tokenizer)
    console.print("reading the tokenizer" if config.tokenizer.path else "training the tokenizer")
    return fit_tokenizer(config.data, config.tokenizer, config.model.vocab_size)


def _with_special_tokens(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Let the model's special tokens be the tokenizer's where the recipe does not say."""
    found = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    missing = {key: value for key, value in found.items() if getattr(config.model, key) is None}
    return config.model_copy(update={"model": config.model.model_copy(update=missing)})


def _prepare(config: RunConfig, tokenizer: Tokenizer, console: Console) -> PreparedData:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("tokenising", total=None)
        prepared = prepare(
            config.data, tokenizer, lambda done, total: progress.update(task, completed=done, total=total)
        )
    for note in prepared.notes:
        console.print(note)
    return prepared


def _new_state(config: RunConfig, prepared: PreparedData, from_scratch: bool) -> TrainState:
    torch.manual_seed(config.train.seed)
    if config.train.init_from is not None and from_scratch:
        model = _load_start(config.model, config.train.init_from)
    else:
        model = build_model(config.model)
        init_weights(model, config.model, config.train.seed)
    model.decoder.recompute = config.train.recompute
    model.decoder.compute_dtype = DTYPES[config.train.precision]
    loader = Loader(prepared, config.data, config.train.batch_size)
    return TrainState(model, build_optimizer(model, config.optim), loader)


def _load_start(config: ModelConfig, name: str) -> LanguageModel:
    """Build the recipe's model with the weights of another one."""
    model = build_model(config, device="meta")
    try:
        model.load_state_dict(load_model(name, "float32").state_dict(), assign=True)
    except RuntimeError as failure:
        raise ConfigError(
            f"train.init_from '{name}' does not fit the model section: {str(failure).splitlines()[1].strip()}",
            "leave out what the model section says about shapes and router",
        ) from None
    return model.requires_grad_(True)


def _write_start(folder: RunFolder, config: RunConfig, tokenizer: Tokenizer, store: CheckpointStore, step: int) -> None:
    """Write what a run begins with, and drop what an earlier course left after this step."""
    if step == 0 or not folder.tokenizer.is_dir():
        with atomic_folder(folder.tokenizer) as target:
            tokenizer.save(target)
    save_recipe(config, folder.config)
    # In this order: a kill between the two must not leave a checkpoint without its metrics.
    store.drop_after(step)
    truncate_after(folder.metrics, step)


def _finish(state: TrainState, config: RunConfig, folder: RunFolder, prepared: PreparedData) -> Outcome:
    known = export_model(state.model, folder.model, DTYPES[config.train.precision], folder.tokenizer)
    total, active = state.model.num_parameters()
    summary: dict[str, Any] = {
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "held_out_loss": state.held_out_loss,
        "parameters": total,
        "active_parameters": active,
        "baselines": {},
    }
    if prepared.held_out is not None and prepared.num_train_tokens <= _BASELINE_TOKENS:
        summary["baselines"] = {"unigram": unigram_loss(prepared), "bigram": bigram_loss(prepared)}
    (folder.path / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    write_run_report(folder, config, summary)
    return Outcome(folder, None, known, summary)


def write_run_report(folder: RunFolder, config: RunConfig, summary: dict[str, Any]) -> None:
    """Write report.html from the metrics of a run."""
    rows = read_metrics(folder.metrics)
    write_report(folder.path.name, rows, config.model_dump(mode="json"), summary, folder.report)
