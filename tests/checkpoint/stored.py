"""Small folders of safetensors for the tests of this room."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from moesaic.checkpoint.store import CheckpointStore, Snapshot


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Return every stored tensor by name."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a single-file checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_file(copies, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    """Change some keys of a JSON object; None removes a key."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def read_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the whole tensors of a checkpoint by name, by folder, put together from all of its files."""
    found: dict[str, dict[str, Tensor]] = {}
    for file in sorted(path.glob("*/*.safetensors")):
        tensors = found.setdefault(file.parent.name, {})
        with safe_open(file, "pt") as content:
            boxes = json.loads(content.metadata()["DCP_SHARDING_INFO"])
            for name in content.keys():  # noqa: SIM118 - it is no mapping
                part = content.get_tensor(name)
                offsets = boxes[name]["saved_offsets"]
                place = tuple(slice(at, at + size) for at, size in zip(offsets, part.shape, strict=True))
                tensors.setdefault(name, torch.full(boxes[name]["shape"], 77, dtype=part.dtype))[place] = part
    return found


def edit_checkpoint(path: Path, folder: str, edit: Callable[[str, Tensor], Tensor | None]) -> None:
    """Write a checkpoint again with some tensors of a folder changed; None removes one."""
    tensors = read_checkpoint(path)
    edited = {name: edit(name, tensor) for name, tensor in tensors[folder].items()}
    tensors[folder] = {name: tensor for name, tensor in edited.items() if tensor is not None}
    state = {key: value for key, value in json.loads((path / "state.json").read_text()).items() if key != "files"}
    CheckpointStore(path.parent, 99, True).save(Snapshot(state, tensors))
