"""Which files hold the weights, and how damaged ones are told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moesaic.checkpoint.tensors import TensorFolder
from moesaic.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def _write_shards(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_tensors_are_listed_with_shape_and_dtype_when_a_folder_is_opened(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4).bfloat16()}, tmp_path / "model.safetensors")
    stored = TensorFolder(tmp_path).stored
    assert (stored["a"].shape, stored["a"].dtype) == ((2, 3), "F32")
    assert (stored["b"].shape, stored["b"].dtype) == ((4,), "BF16")


def test_tensors_are_read_from_their_shards_when_there_is_an_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.arange(3)}, tmp_path / "two.safetensors")
    save_file({"c": torch.ones(1)}, tmp_path / "not listed.safetensors")
    _write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    folder = TensorFolder(tmp_path)
    assert sorted(folder.stored) == ["a", "b"]
    assert [folder.stored[name].extent.file.name for name in "ab"] == ["one.safetensors", "two.safetensors"]


def test_whole_model_is_read_when_an_index_is_left_beside_it(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "old.safetensors")
    _write_shards(tmp_path, {"b": "old.safetensors", "c": "gone.safetensors"})
    assert sorted(TensorFolder(tmp_path).stored) == ["a"]


def test_all_files_are_read_when_there_is_no_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "two.safetensors")
    assert sorted(TensorFolder(tmp_path).stored) == ["a", "b"]


def test_folder_is_refused_when_a_shard_is_missing(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    _write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"lists 2 files, 1 of them missing: two\.safetensors") as caught:
        TensorFolder(tmp_path)
    assert caught.value.hint == "fetch the missing files"


@pytest.mark.parametrize("weight_map", [None, ["a"], {"a": 3}])
def test_index_is_refused_when_it_maps_no_names_to_files(weight_map: Any, tmp_path: Path) -> None:
    _write_shards(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match="holds no weight_map of names to files"):
        TensorFolder(tmp_path)


def test_index_is_refused_when_it_lists_no_files(tmp_path: Path) -> None:
    _write_shards(tmp_path, {})
    with pytest.raises(CheckpointError, match="lists no files"):
        TensorFolder(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickle_is_refused_when_there_is_nothing_else(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(
        CheckpointError, match=f"holds a pickle checkpoint \\({name}\\), never read: it could"
    ) as caught:
        TensorFolder(tmp_path)
    assert caught.value.hint.startswith("convert it with transformers: save_pretrained")


def test_folder_is_refused_when_it_holds_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no safetensors files in '") as caught:
        TensorFolder(tmp_path)
    assert caught.value.hint == f"expected model.safetensors or {INDEX}"


@pytest.mark.parametrize("kept_bytes", [0, 4, 40, -1])
def test_file_is_refused_with_its_size_when_cut_short(kept_bytes: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(64)}, file)
    content = file.read_bytes()[:kept_bytes]
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"cannot read '.*model\.safetensors' \({len(content)} bytes\): "
    ) as caught:
        TensorFolder(tmp_path)
    assert caught.value.hint == "the file is damaged or cut short; fetch it again"


def test_extents_hold_the_values_when_a_folder_is_opened(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(7, dtype=torch.float32), "b": torch.arange(5).bfloat16().reshape(1, 5)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    content = (tmp_path / "model.safetensors").read_bytes()
    for name, tensor in tensors.items():
        extent = TensorFolder(tmp_path).stored[name].extent
        found = torch.frombuffer(bytearray(content[extent.offset :][: extent.num_bytes]), dtype=tensor.dtype)
        assert torch.equal(found, tensor.flatten())
