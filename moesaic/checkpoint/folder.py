"""Where a model lies: a folder, a run folder, a checkpoint of a run, or a hub id brought into the local cache."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moesaic.checkpoint.hub import download, list_files
from moesaic.config.load import check_section
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError
from moesaic.models.config_json import read_config

CONFIG = "config.json"
STATE = "state.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth")


def find_model(name: str | Path) -> Path:
    """Return the local folder of a checkpoint.

    Args:
        name: a Hugging Face folder, a run folder of `moesaic train` (its `model/`), a checkpoint of a run, or a
            hub id such as 'allenai/OLMoE-1B-7B-0924', which is fetched through huggingface_hub and its cache.

    Raises:
        CheckpointError: there is no such folder, or the hub cannot give it.
        ConfigError, UnsupportedError: as `load_config`, before weights are fetched from the hub.
    """
    folder = Path(name).expanduser()
    if (folder / "model" / CONFIG).is_file() and not (folder / CONFIG).is_file():
        return folder / "model"
    if folder.is_dir():
        if (folder / "config.toml").is_file():
            checkpoints = sorted((folder / "checkpoints").glob("step-*"))
            way_out = f", or give its last checkpoint: {checkpoints[-1]}" if checkpoints else ""
            raise CheckpointError(
                f"run folder '{folder}' holds no finished model", f"let `moesaic train` finish{way_out}"
            )
        return folder
    text = str(name)
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise CheckpointError(
            f"no model folder at '{text}'", "give a folder with config.json, or a hub id such as owner/name"
        )
    return _fetch(text)


def _fetch(repo_id: str) -> Path:
    """Bring a model from the hub: first what tells it, so that a mistake shows early, then the weights it needs."""
    folder = download(repo_id, ["*.json", "*.jinja"])
    commit = folder.name
    load_config(folder)
    download(repo_id, [WEIGHTS], revision=commit)
    if (folder / WEIGHTS).is_file():
        return folder
    if (folder / INDEX).is_file():
        download(repo_id, list_shards(folder), revision=commit)
        return folder
    # Some repositories hold the same weights again as consolidated files, or in subfolders for other programs.
    download(repo_id, ["*.safetensors"], ignored=["consolidated*", "*/*"], revision=commit)
    if not any(folder.glob("*.safetensors")):
        refuse_pickles(repo_id, list_files(repo_id, commit))
    return folder


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder is a checkpoint of a run, which tells its model in its own terms."""
    return (folder / STATE).is_file() and not (folder / CONFIG).is_file()


def config_file(folder: Path) -> Path:
    """Return the file that tells the architecture of the model in a folder."""
    return folder / (STATE if is_checkpoint(folder) else CONFIG)


def load_config(folder: Path) -> ModelConfig:
    """Read the architecture of the model in a folder, from config.json or from a checkpoint's recipe.

    Raises:
        CheckpointError: the file is missing or damaged.
        ConfigError: a value of wrong type or range, or a missing one.
        UnsupportedError: a family or a feature that this version does not compute.
    """
    file = config_file(folder)
    content = read_json(file)
    if file.name == CONFIG:
        return read_config(content, str(file))
    recipe = content.get("config")
    section = recipe.get("model") if isinstance(recipe, dict) else None
    if not isinstance(section, dict):
        raise CheckpointError(f"checkpoint '{folder}' lacks its recipe", "give another checkpoint")
    return check_section(ModelConfig, section, str(file), "give another checkpoint")


def find_tokenizer(folder: Path) -> Path:
    """Return the folder of a model's tokenizer files: RUN/tokenizer for RUN/checkpoints/STEP, else its own."""
    return folder.absolute().parents[1] / "tokenizer" if is_checkpoint(folder) else folder


def list_shards(folder: Path) -> list[str]:
    """Return the names of the files that the index of a folder lists.

    Raises:
        CheckpointError: the index is damaged, or lists no files.
    """
    index = folder / INDEX
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"'{index}' holds no weight_map of names to files", "the file is damaged; fetch it again")
    if not weight_map:
        raise CheckpointError(f"'{index}' lists no files", "the file is damaged; fetch it again")
    return sorted(set(weight_map.values()))


def refuse_pickles(place: str | Path, names: Iterable[str]) -> None:
    """Refuse a place without safetensors whose files are pickles.

    Raises:
        CheckpointError: one of the names is a pickle's.
    """
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles:
        raise CheckpointError(
            f"'{place}' holds a pickle checkpoint ({pickles[0]}), never read: it could run any code",
            "convert it with transformers: save_pretrained(folder, safe_serialization=True)",
        )


def read_json(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file is missing, is no valid JSON or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' is missing", "give a folder in Hugging Face's layout") from None
    except (OSError, ValueError) as failure:
        raise CheckpointError(f"cannot read '{path}': {failure}", "the file is damaged; fetch it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"'{path}' holds no JSON object", "the file is damaged; fetch it again")
    return content
