"""Reading a checkpoint folder into a model, in place: no conversion, no second copy."""

from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.folder import find_model
from moesaic.checkpoint.mapping import Source
from moesaic.checkpoint.stored import StoredModel, open_model
from moesaic.checkpoint.tensors import FLOATS, TensorReader
from moesaic.errors import ConfigError
from moesaic.models.model import LanguageModel

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def load_model(name: str | Path, dtype: str | None = None) -> LanguageModel:
    """Load a model for inference or training.

    Args:
        name: a Hugging Face folder, a run folder, a checkpoint of a run, or a hub id.
        dtype: 'float32', 'bfloat16', 'float16' or 'float64'; None: as stored.

    Returns:
        The model in evaluation mode; `model(ids_BS)` gives logits [B, S, V].

    Raises:
        CheckpointError: files are missing, damaged or do not fit the configuration.
        UnsupportedError: a family or feature that is not supported.
        ConfigError: unknown dtype, or a value in the configuration that is not accepted.
    """
    asked = choose_dtype(dtype)
    stored = open_model(find_model(name))
    target = asked or _stored_dtype(stored)
    state = stored.model.state_dict()
    with stored.tensors.reader() as reader:
        weights = {
            name: _read(source, tuple(state[name].shape), reader, target) for name, source in stored.sources.items()
        }
    stored.model.load_state_dict(weights, assign=True)
    return stored.model.eval().requires_grad_(False)


def choose_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype of a name, None for none.

    Raises:
        ConfigError: there is no such dtype.
    """
    if name is not None and name not in DTYPES:
        raise ConfigError(f"unknown dtype '{name}'", f"accepted: {', '.join(DTYPES)}")
    return None if name is None else DTYPES[name]


def _read(source: Source, shape: tuple[int, ...], reader: TensorReader, dtype: torch.dtype) -> Tensor:
    # The balancing bias stays float32: it is moved in steps that bf16 cannot hold.
    dtype = torch.float32 if source.names[0].endswith("selection_bias") else dtype
    if source.parts is None:
        return reader.read(source.names[0]).to(dtype)
    stacked = torch.empty(shape, dtype=dtype)
    size = shape[1] // source.parts
    for position, name in enumerate(source.names):
        expert, part = divmod(position, source.parts)
        stacked[expert, part * size : (part + 1) * size].copy_(reader.read(name))
    return stacked


def _stored_dtype(stored: StoredModel) -> torch.dtype:
    """Return the dtype of most stored tensors; of equally many, the first."""
    dtypes = [stored.tensors.stored[name].dtype for source in stored.sources.values() for name in source.names]
    return FLOATS[max(dict.fromkeys(dtypes), key=dtypes.count)]
