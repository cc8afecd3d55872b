"""What a run begins with: tokenizer, data, model, optimizer."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from moesaic.checkpoint.load import DTYPES, load_model
from moesaic.config.model import ModelConfig
from moesaic.config.run import RunConfig
from moesaic.data.loader import Loader
from moesaic.data.prepare import PreparedData, prepare
from moesaic.data.vocabulary import fit_tokenizer
from moesaic.errors import ConfigError, MemoryBudgetError
from moesaic.hw.bfloat16 import computes_bfloat16
from moesaic.hw.memory import available_bytes
from moesaic.models.model import LanguageModel, build_model
from moesaic.nn.init import init_weights
from moesaic.optim.table import build_optimizer, state_bytes
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
    precision = config.train.precision or ("bfloat16" if computes_bfloat16() else "float32")
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


def new_state(config: RunConfig, prepared: PreparedData, from_scratch: bool) -> TrainState:
    """Build the state before the first step; weights of `train.init_from` are read for a run from scratch only."""
    _check_memory(config)
    torch.manual_seed(config.train.seed)
    if config.train.init_from is not None and from_scratch:
        model = _load_start(config.model, config.train.init_from)
    else:
        model = build_model(config.model)
        init_weights(model, config.model, config.train.seed)
    model.decoder.recompute = config.train.recompute
    model.decoder.compute_dtype = DTYPES[str(config.train.precision)]
    loader = Loader(prepared, config.data, config.train.batch_size)
    return TrainState(model, build_optimizer(model, config.optim), loader)


def _check_memory(config: RunConfig) -> None:
    """Refuse a run whose state alone does not fit; activations come on top.

    Raises:
        MemoryBudgetError: weights, gradients and moments exceed the free memory.
    """
    num_parameters, _ = build_model(config.model, device="meta").num_parameters()
    needed = state_bytes(num_parameters, config.optim.kind)
    if needed > (available := available_bytes()):
        raise MemoryBudgetError(
            f"training {format_count(num_parameters)} parameters takes {format_bytes(needed)} before any activation, "
            f"{format_bytes(available)} are free",
            "choose a smaller model, or optim.kind = 'lion', which keeps one moment",
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
