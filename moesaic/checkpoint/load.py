"""Reading a checkpoint folder into a model, in place: no conversion, no second copy."""

from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.folder import find_model, read_json
from moesaic.checkpoint.mapping import Source, plan_sources
from moesaic.checkpoint.tensors import FLOATS, TensorFolder, TensorReader
from moesaic.errors import ConfigError
from moesaic.models.config_json import read_config
from moesaic.models.model import LanguageModel, build_model
from moesaic.models.table import NATIVE, find_family

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def load_model(name: str | Path, dtype: str | None = None) -> LanguageModel:
    """Load a model for inference or training.

    Args:
        name: a Hugging Face folder, a run folder, or a hub id.
        dtype: 'float32', 'bfloat16', 'float16' or 'float64'; None: as stored.

    Returns:
        The model in evaluation mode; `model(ids_BS)` gives logits [B, S, V].

    Raises:
        CheckpointError: files are missing, damaged or do not fit config.json.
        UnsupportedError: a family or feature that is not supported.
        ConfigError: unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'", f"accepted: {', '.join(DTYPES)}")
    folder = find_model(name)
    config_path = folder / "config.json"
    config = read_config(read_json(config_path), str(config_path))
    stored = TensorFolder(folder)
    model = build_model(config, device="meta")
    family = None if config.model_type == NATIVE else find_family(config.model_type)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    sources = plan_sources(state, family, stored)
    target = DTYPES[dtype] if dtype is not None else _stored_dtype(sources, stored)
    with stored.reader() as reader:
        weights = {name: _read(source, state[name], reader, target) for name, source in sources.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


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


def _stored_dtype(sources: dict[str, Source], stored: TensorFolder) -> torch.dtype:
    """Return the dtype of most stored tensors; of equally many, the first."""
    dtypes = [stored.stored[name].dtype for source in sources.values() for name in source.names]
    return FLOATS[max(dict.fromkeys(dtypes), key=dtypes.count)]
