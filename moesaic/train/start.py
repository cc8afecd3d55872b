"""What a run begins with: tokenizer, data, model, optimizer."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from moesaic.checkpoint.load import DTYPES, load_model
from moesaic.comm.choose import choose_all_to_all
from moesaic.comm.mesh import build_mesh
from moesaic.comm.world import World
from moesaic.config.model import ModelConfig
from moesaic.config.run import RunConfig
from moesaic.data.loader import Loader
from moesaic.data.prepare import PreparedData, prepare
from moesaic.data.vocabulary import fit_tokenizer
from moesaic.errors import ConfigError, MemoryBudgetError
from moesaic.hw.bfloat16 import computes_bfloat16
from moesaic.hw.device import free_device_bytes
from moesaic.hw.memory import available_bytes
from moesaic.models.model import LanguageModel, build_model
from moesaic.nn.init import init_weights
from moesaic.optim.table import build_optimizer, state_bytes
from moesaic.parallel.apply import apply_parallel, share_gradients
from moesaic.parallel.gradient import Gradients, LocalGradients
from moesaic.parallel.part import load_parts, own_part
from moesaic.parallel.plan import plan_degrees
from moesaic.tokenizer.tokenizer import Tokenizer
from moesaic.train.run_folder import RunFolder
from moesaic.train.state import TrainState
from moesaic.units import format_bytes, format_count


def open_tokenizer(folder: RunFolder, config: RunConfig, checkpoint: Path | None, console: Console) -> Tokenizer:
    """Return the tokenizer of a run that goes on, or the recipe's: a given one, or one trained on the data."""
    if checkpoint is not None and folder.tokenizer.is_dir():
        return Tokenizer.load(folder.tokenizer)
    console.print("reading the tokenizer" if config.tokenizer.path else "training the tokenizer")
    return fit_tokenizer(config.data, config.tokenizer, config.model.vocab_size)


def resolve(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Fill in what the recipe leaves to the machine and to the tokenizer: precision, special tokens."""
    found = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    missing = {key: value for key, value in found.items() if getattr(config.model, key) is None}
    model = config.model.model_copy(update=missing)
    is_narrow = config.train.device == "cuda" or computes_bfloat16()
    precision = config.train.precision or ("bfloat16" if is_narrow else "float32")
    return config.model_copy(update={"model": model, "train": config.train.model_copy(update={"precision": precision})})


def prepare_data(config: RunConfig, tokenizer: Tokenizer, console: Console) -> PreparedData:
    """Tokenise what is not yet tokenised; on a terminal, with a bar."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("tokenising", total=None)
        prepared = prepare(
            config.data, tokenizer, lambda done, total: progress.update(task, completed=done, total=total)
        )
    for note in prepared.notes:
        console.print(note)
    return prepared


def new_state(config: RunConfig, prepared: PreparedData, from_scratch: bool, world: World) -> TrainState:
    """Build the state before the first step; weights of `train.init_from` are read for a run from scratch only.

    Args:
        world: the processes that share it; all must call.
    """
    torch.manual_seed(config.train.seed)
    model, gradients = _new_model(config, config.train.init_from if from_scratch else None, world)
    model.decoder.recompute = config.train.recompute
    model.decoder.compute_dtype = DTYPES[str(config.train.precision)]
    loader = Loader(prepared, config.data, config.train.batch_size)
    return TrainState(model, build_optimizer(model, config.optim), loader, gradients, world)


def _new_model(config: RunConfig, start: str | None, world: World) -> tuple[LanguageModel, Gradients]:
    """Build the model, or this process's part of it, with the weights of `start` or random ones."""
    if world.size == 1:
        if start is not None:
            model = _load_start(config.model, start)
        else:
            model = build_model(config.model)
            init_weights(model, config.model, config.train.seed)
        model = model.to(world.device)
        return model, LocalGradients(model)
    degrees = plan_degrees(config.parallel, config.model, world.size)
    mesh = build_mesh(
        degrees.data_replicate,
        degrees.data_shard,
        degrees.expert,
        world.num_here,
        degrees.tensor,
        world.device.type,
        config.parallel.timeout_s,
    )
    tokens = config.train.micro_batch * config.data.sequence_length // world.size
    num_rows = tokens * min(config.model.experts_per_token, degrees.expert)
    row_bytes = config.model.hidden_size * DTYPES[str(config.train.precision)].itemsize
    all_to_all = choose_all_to_all(mesh, config.parallel.all_to_all, num_rows, row_bytes)
    # Without weights until each process has only its part of them to keep.
    model = build_model(config.model, device="meta")
    model = apply_parallel(model, mesh, all_to_all, degrees.splits_embedding).to_empty(device=world.device)
    init_weights(model, config.model, config.train.seed, own_part)
    if start is not None:
        load_parts(model, _load_start(config.model, start).state_dict())
    return model, share_gradients(model, mesh, config.parallel.bucket_bytes)


def check_memory(config: RunConfig, world: World) -> None:
    """Refuse a run whose state alone does not fit; activations come on top.

    Args:
        world: the processes that share the state; those of this machine share its memory.

    Raises:
        MemoryBudgetError: weights, gradients and moments, and the copy that checkpoints are written from, exceed the
            free memory.
    """
    degrees = plan_degrees(config.parallel, config.model, world.size)
    model = build_model(config.model, device="meta")
    num_parameters, kind = degrees.own_parameters(model), config.optim.kind
    # Each has a GPU of its own; memory of the machine is shared.
    on_gpu = world.device.type == "cuda"
    sharing = 1 if on_gpu else world.num_here
    needed = sharing * state_bytes(num_parameters, kind)
    without_copy = ""
    if config.checkpoint.asynchronous and not on_gpu:
        total, _ = model.num_parameters()
        # All but the gradients, once over all processes.
        needed += world.num_here * (state_bytes(total, kind) - 4 * total) // world.size
        without_copy = "checkpoint.asynchronous = false, which saves without a copy, "
    each = f" in each of {sharing} processes" if sharing > 1 else ""
    more = "more machines, " if world.size > 1 else ""
    if needed > (available := free_device_bytes(world.device) if on_gpu else available_bytes()):
        raise MemoryBudgetError(
            f"training {format_count(num_parameters)} parameters{each} takes {format_bytes(needed)} before any "
            f"activation, {format_bytes(available)} are free",
            f"choose a smaller model, {more}{without_copy}or optim.kind = 'lion', which keeps one moment",
        )


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
