"""Reading a checkpoint folder into a model, in place: no conversion, no second copy."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.folder import find_model
from moesaic.checkpoint.mapping import quantised_dtype
from moesaic.checkpoint.pieces import pieces_of
from moesaic.checkpoint.records import read_stacked
from moesaic.checkpoint.stored import StoredModel, open_model
from moesaic.checkpoint.tensors import DTYPES as STORED_DTYPES
from moesaic.errors import ConfigError
from moesaic.memory.disk import Disk
from moesaic.models.model import LanguageModel

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def load_model(name: str | Path, dtype: str | None = None) -> LanguageModel:
    """Load a model for inference or training, a repacked one too if its weights were not rounded.

    Args:
        name: a Hugging Face folder, a run folder, a checkpoint of a run, or a hub id.
        dtype: 'float32', 'bfloat16', 'float16' or 'float64'; None: as stored.

    Returns:
        The model in evaluation mode; `model(ids_BS)` gives logits [B, S, V].

    Raises:
        CheckpointError: files are missing, damaged or do not fit the configuration.
        UnsupportedError: a family or feature that is not supported, or experts of a few bits.
        ConfigError: unknown dtype, or a value in the configuration that is not accepted.
    """
    asked = choose_dtype(dtype)
    stored = open_model(find_model(name))
    stored.check_exact()
    kept = asked or stored.dtype
    disk = Disk(cached=True)
    try:
        weights = read_parameters(stored, stored.sources, kept, disk)
        if stored.repacked is not None:
            weights |= read_stacked(stored.repacked.pages, stored.repacked.index.layout, kept, disk)
    finally:
        disk.close()
    stored.model.load_state_dict(weights, assign=True)
    return stored.model.eval().requires_grad_(False)


def read_parameters(stored: StoredModel, names: Iterable[str], dtype: torch.dtype, disk: Disk) -> dict[str, Tensor]:
    """Read parameters of a model, all at once.

    Args:
        stored: the model.
        names: of its parameters.
        dtype: that they get.
        disk: which reads them.

    Raises:
        CheckpointError: a file cannot be read.
    """
    state = stored.model.state_dict()
    weights, readings = {}, []
    for name in names:
        kept = kept_dtype(name, dtype)
        weights[name] = torch.empty(state[name].shape, dtype=kept)
        page = pieces_of(stored.sources[name], kept, stored.tensors)
        readings.append(disk.read(page, weights[name].view(-1).view(torch.uint8).numpy()))
    for reading in readings:
        reading.wait()
    return weights


def read_each(stored: StoredModel, dtype: torch.dtype, disk: Disk) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a model one after another, as `read_parameters` reads them, by name.

    Raises:
        CheckpointError: a file cannot be read.
    """
    repacked = stored.repacked
    stacked = None if repacked is None else read_stacked(repacked.pages, repacked.index.layout, dtype, disk)
    for name in stored.model.state_dict():
        if name in stored.sources:
            yield name, read_parameters(stored, [name], dtype, disk)[name]
        else:
            assert stacked is not None, "what has no source is in records"
            yield next(stacked)


def kept_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that a parameter gets in a model of a dtype."""
    fixed = quantised_dtype(name)
    if fixed is not None:
        return STORED_DTYPES[fixed]
    # The balancing bias stays float32: it is moved in steps that bf16 cannot hold.
    return torch.float32 if name.endswith("selection_bias") else dtype


def choose_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype of a name, None for none.

    Raises:
        ConfigError: there is no such dtype.
    """
    if name is not None and name not in DTYPES:
        raise ConfigError(f"unknown dtype '{name}'", f"accepted: {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]
