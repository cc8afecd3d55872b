"""A model folder of random weights, of any published size: what a benchmark reads where no network gives a real one.

A layer is drawn, written and forgotten before the next, so that memory holds one layer however large the model is.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from moesaic.checkpoint.atomic import atomic_folder, write_tensors
from moesaic.checkpoint.export import stored_tensors
from moesaic.checkpoint.folder import CONFIG, INDEX
from moesaic.config.model import ModelConfig
from moesaic.models.config_json import write_config
from moesaic.models.model import build_model
from moesaic.models.table import find_family
from moesaic.nn.init import init_weights

DTYPE = torch.bfloat16


@torch.no_grad()
def save_random_model(
    config: ModelConfig, folder: Path, seed: int = 0, report: Callable[[int, int], object] = lambda done, total: None
) -> None:
    """Write a Hugging Face folder of bfloat16 weights as training would start with; it appears whole or not at all.

    Each layer is a file of its own, and all that stands outside the layers is the first file.

    Args:
        config: of a family, whose names are written.
        folder: replaced as a whole.
        seed: equal ones give equal weights.
        report: is told the files done and all of them, before each and at the end.

    Raises:
        CheckpointError: the folder cannot be written, such as on a full disk.
        UnsupportedError: the model is of no family.
    """
    family = find_family(config.model_type)
    model = build_model(config, "meta").to(DTYPE)
    layers = model.decoder.layers
    model.decoder.layers = nn.ModuleList()
    parts: list[tuple[str, nn.Module]] = [("", model)]
    parts += [(f"decoder.layers.{index}.", layer) for index, layer in enumerate(layers)]
    files: dict[str, str] = {}
    total_bytes = 0
    with atomic_folder(folder) as target:
        for number, (prefix, part) in enumerate(parts):
            report(number, len(parts))
            part.to_empty(device="cpu")
            init_weights(part, config, seed * len(parts) + number)
            parameters = ((prefix + name, tensor) for name, tensor in part.state_dict().items())
            tensors = dict(stored_tensors(parameters, family, DTYPE))
            file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
            write_tensors(target / file, tensors, {"format": "pt"})
            files |= dict.fromkeys(tensors, file)
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
            part.to_empty(device="meta")
        (target / INDEX).write_text(
            json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": files}, indent=2)
        )
        fields = write_config(config, str(DTYPE).removeprefix("torch."))
        (target / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
    report(len(parts), len(parts))
