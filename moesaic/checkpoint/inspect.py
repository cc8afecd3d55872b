"""What a checkpoint holds, from names and shapes alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from moesaic.checkpoint.folder import find_model, read_json
from moesaic.checkpoint.mapping import plan_sources
from moesaic.checkpoint.tensors import FLOATS, TensorFolder
from moesaic.models.config_json import read_config
from moesaic.models.model import build_model
from moesaic.models.table import NATIVE, find_family


def inspect_checkpoint(name: str | Path) -> dict[str, Any]:
    """Check that a checkpoint is complete, and return its sizes; no weights are read.

    Returns:
        Counts and bytes: the dense core is what every token uses, an expert page is all tensors of one expert.

    Raises:
        CheckpointError: tensors are missing or of wrong shape.
        UnsupportedError: the family is not supported.
    """
    folder = find_model(name)
    config = read_config(read_json(folder / "config.json"), str(folder / "config.json"))
    stored = TensorFolder(folder)
    model = build_model(config, device="meta")
    family = None if config.model_type == NATIVE else find_family(config.model_type)
    sources = plan_sources({key: tuple(value.shape) for key, value in model.state_dict().items()}, family, stored)
    num_bytes = {
        parameter: sum(_tensor_bytes(stored, each) for each in source.names) for parameter, source in sources.items()
    }
    expert_bytes = sum(size for parameter, size in num_bytes.items() if ".moe.experts." in parameter)
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    total, active = model.num_parameters()
    dtypes = Counter(stored.stored[each].dtype for source in sources.values() for each in source.names)
    return {
        "folder": str(folder),
        "family": config.model_type,
        "layers": config.num_hidden_layers,
        "moe_layers": moe_layers,
        "experts_per_layer": config.num_experts,
        "experts_per_token": config.experts_per_token,
        "router": config.router,
        "parameters": total,
        "active_parameters": active,
        "dtype": ", ".join(dtype for dtype, _ in dtypes.most_common()),
        "total_bytes": sum(num_bytes.values()),
        "dense_core_bytes": sum(num_bytes.values()) - expert_bytes,
        "expert_bytes": expert_bytes,
        "expert_page_bytes": expert_bytes // (moe_layers * config.num_experts) if moe_layers else 0,
    }


def _tensor_bytes(stored: TensorFolder, name: str) -> int:
    entry = stored.stored[name]
    size = FLOATS[entry.dtype].itemsize
    for dim in entry.shape:
        size *= dim
    return size
