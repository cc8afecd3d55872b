"""Writing a model as a Hugging Face folder."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.atomic import atomic_folder, write_tensors
from moesaic.checkpoint.folder import CONFIG, INDEX, WEIGHTS
from moesaic.checkpoint.load import kept_dtype
from moesaic.checkpoint.mapping import source_choices
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError
from moesaic.models.config_json import write_config
from moesaic.models.model import LanguageModel
from moesaic.models.spec import FamilySpec
from moesaic.models.table import FAMILIES

SHARD_BYTES = 5 * 10**9
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def export_model(
    model: LanguageModel,
    folder: Path,
    dtype: torch.dtype | None = None,
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> bool:
    """Write config.json and safetensors, one tensor for each expert and projection, replacing the folder as a
    whole.

    Args:
        model: any model of ours.
        folder: replaced as a whole when everything is written.
        dtype: of the stored weights; None: as in the model.
        tokenizer: folder whose tokenizer files and generation_config.json are copied; None: none.
        shard_bytes: largest file.

    Returns:
        Whether transformers can load the folder: True where one of its families says all about the model.

    Raises:
        CheckpointError: the folder cannot be written, or holds more than a model; an earlier one stays whole.
    """
    dtype = dtype or next(model.parameters()).dtype
    return export_tensors(model.config, model.state_dict().items(), dtype, folder, tokenizer, shard_bytes)


def export_tensors(
    model: ModelConfig,
    parameters: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    folder: Path,
    tokenizer: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> bool:
    """Do as `export_model` with parameters that come one after another; one file of them is in memory.

    Args:
        model: what they are of.
        parameters: all of its state, by our names, in any order.
        dtype, folder, tokenizer, shard_bytes: as for `export_model`.
    """
    _check_replaceable(folder)
    config: dict[str, Any] = write_config(model, str(dtype).removeprefix("torch."))
    family = FAMILIES.get(config["model_type"])
    with atomic_folder(folder) as target:
        write_settings(target, config, tokenizer)
        index: dict[str, str] = {}
        total_bytes = 0
        for number, tensors in enumerate(_shards(stored_tensors(parameters, family, dtype), shard_bytes)):
            file = f"model-{number + 1:05d}.safetensors"
            write_tensors(target / file, tensors, {"format": "pt"})
            index |= dict.fromkeys(tensors, file)
            total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        if len(set(index.values())) == 1:
            (target / file).rename(target / WEIGHTS)
        else:
            content = {"metadata": {"total_size": total_bytes}, "weight_map": index}
            (target / INDEX).write_text(json.dumps(content, indent=2))
    return family is not None


def stored_tensors(
    parameters: Iterable[tuple[str, Tensor]], family: FamilySpec | None, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor as it is stored, with the name that we write, one expert at a time.

    Args:
        parameters: by our names.
        family: whose names are written; None: our own.
        dtype: of the stored weights.
    """
    for name, tensor in parameters:
        source = source_choices(name, tuple(tensor.shape), family)[0]
        wanted = kept_dtype(name, dtype)
        if source.parts is None:
            yield source.names[0], tensor.to(wanted).contiguous()
            continue
        size = tensor.shape[1] // source.parts
        for position, stored_name in enumerate(source.names):
            expert, part = divmod(position, source.parts)
            yield stored_name, tensor[expert, part * size : (part + 1) * size].to(wanted).contiguous()


def write_settings(folder: Path, config: dict[str, Any], tokenizer: Path | None) -> None:
    """Write what a model folder holds beside weights.

    Args:
        folder: to write into.
        config: content of config.json.
        tokenizer: folder whose tokenizer files and generation_config.json are copied; None: none.

    Raises:
        OSError: a file cannot be written.
    """
    companions = [] if tokenizer is None else [tokenizer / name for name in (GENERATION_FILE, *TOKENIZER_FILES)]
    for companion in companions:
        if companion.is_file():
            shutil.copy2(companion, folder / companion.name)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if not (folder / GENERATION_FILE).exists():
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        generation = {key: config[key] for key in keys if config.get(key) is not None}
        (folder / GENERATION_FILE).write_text(json.dumps(generation, indent=2) + "\n")


def _shards(tensors: Iterator[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace a folder that is more than a model, such as a project or a home folder."""
    ours = {"config.json", GENERATION_FILE, INDEX, *TOKENIZER_FILES}
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    foreign = [path.name for path in entries if path.name not in ours and path.suffix != ".safetensors"]
    if foreign:
        raise CheckpointError(
            f"cannot replace '{folder}' by a model: it holds '{foreign[0]}', which is no part of one",
            "name a new or empty folder",
        )
