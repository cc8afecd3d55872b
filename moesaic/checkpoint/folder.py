"""Where a model lies: a folder, a run folder, or a hub id brought into the local cache."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_WANTED = ["*.json", "*.safetensors", "*.jinja"]


def find_model(name: str | Path) -> Path:
    """Return the local folder of a checkpoint.

    Args:
        name: a Hugging Face folder, a run folder of `moesaic train` (its `model/`), or a hub id such as
            'allenai/OLMoE-1B-7B-0924', which is fetched through huggingface_hub and its cache.

    Raises:
        CheckpointError: there is no such folder, or the hub cannot give it.
    """
    folder = Path(name)
    if (folder / "model" / "config.json").is_file() and not (folder / "config.json").is_file():
        return folder / "model"
    if folder.is_dir():
        if (folder / "config.toml").is_file():
            raise CheckpointError(
                f"run folder '{folder}' holds no finished model",
                "let `moesaic train` finish, or give a checkpoint",
            )
        return folder
    text = str(name)
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise CheckpointError(
            f"no model folder at '{text}'", "give a folder with config.json, or a hub id such as owner/name"
        )
    return _fetch(text)


def _fetch(repo_id: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as failure:
        reason = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        raise CheckpointError(
            f"no folder '{repo_id}' here, and the hub does not give it: {reason}",
            "check the name and the connection",
        ) from None


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
