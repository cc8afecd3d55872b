"""What a checkpoint holds, counted by hand from names and shapes."""

from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.inspect import inspect_checkpoint
from moesaic.checkpoint.repack import repack_model
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.errors import CheckpointError, UnsupportedError
from moesaic.testing.tiny import tiny_model
from tests.checkpoint.stored import edit_json, read_folder, write_folder

WIDTH, VOCAB, EXPERTS, EXPERT_WIDTH, LAYERS = 16, 61, 5, 12, 2
EXPERT = 3 * WIDTH * EXPERT_WIDTH
# Query and output of 4 heads, key and value of 2, each of 4 channels; the router; two norms.
LAYER_CORE = 2 * WIDTH * 16 + 2 * WIDTH * 8 + EXPERTS * WIDTH + 2 * WIDTH
CORE = 2 * VOCAB * WIDTH + WIDTH + LAYERS * LAYER_CORE


@pytest.mark.parametrize(("dtype", "name", "size"), [(torch.float32, "F32", 4), (torch.bfloat16, "BF16", 2)])
def test_counts_and_bytes_are_those_of_the_shapes_when_a_mixture_is_inspected(
    dtype: torch.dtype, name: str, size: int, tmp_path: Path
) -> None:
    export_model(tiny_model(dtype=dtype), tmp_path / "model", shard_bytes=3000)
    assert inspect_checkpoint(tmp_path) == {
        "folder": str(tmp_path / "model"),
        "family": "mixtral",
        "layers": 2,
        "moe_layers": 2,
        "experts_per_layer": 5,
        "experts_per_token": 2,
        "router": "softmax",
        "parameters": CORE + LAYERS * EXPERTS * EXPERT,
        "active_parameters": CORE + LAYERS * 2 * EXPERT,
        "dtype": name,
        "total_bytes": size * (CORE + LAYERS * EXPERTS * EXPERT),
        "dense_core_bytes": size * CORE,
        "expert_bytes": size * LAYERS * EXPERTS * EXPERT,
        "expert_page_bytes": size * EXPERT,
        "experts_as": "tensors",
    }


@pytest.mark.parametrize(("bits", "page_bytes"), [(None, 4096), (8, 16384), (4, 8192)])
def test_records_are_counted_as_they_lie_when_repacked(bits: int | None, page_bytes: int, tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "model")
    index = repack_model(tmp_path / "model", tmp_path / "new", bits)
    before, after = inspect_checkpoint(tmp_path / "model"), inspect_checkpoint(tmp_path / "new")
    expected = {
        "folder": str(tmp_path / "new"),
        "total_bytes": 4 * CORE + LAYERS * EXPERTS * page_bytes,
        "expert_bytes": LAYERS * EXPERTS * page_bytes,
        "expert_page_bytes": page_bytes,
        "experts_as": "records",
    }
    if bits is not None:
        worst = min(min(each) for file in index.files.values() for each in file.decibels.values())
        expected |= {"expert_bits": bits, "worst_expert_decibels": worst}
    assert after == before | expected


def test_checkpoint_of_a_run_is_inspected_as_its_export_would_be_when_named(tmp_path: Path) -> None:
    model = tiny_model()
    export_model(model, tmp_path / "model")
    state = {"step": 3, "config": {"model": model.config.model_dump(mode="json")}}
    tensors = {"model": model.state_dict(), "optimizer": {"moment": torch.ones(1)}}
    path = CheckpointStore(tmp_path / "checkpoints", 2, True).save(Snapshot(state, tensors))
    exported = inspect_checkpoint(tmp_path / "model")
    assert inspect_checkpoint(path) == {**exported, "folder": str(path), "family": "moesaic"}


def test_page_is_of_no_bytes_when_the_model_is_dense(tmp_path: Path) -> None:
    export_model(tiny_model(num_experts=0, num_experts_per_tok=0), tmp_path / "model")
    facts = inspect_checkpoint(tmp_path / "model")
    assert (facts["moe_layers"], facts["expert_bytes"], facts["expert_page_bytes"]) == (0, 0, 0)
    assert facts["active_parameters"] == facts["parameters"]
    assert facts["dense_core_bytes"] == facts["total_bytes"]


def test_page_is_one_expert_when_some_layers_are_dense(tmp_path: Path) -> None:
    export_model(tiny_model(mlp_only_layers=[0]), tmp_path / "model")
    facts = inspect_checkpoint(tmp_path / "model")
    assert (facts["moe_layers"], facts["expert_page_bytes"]) == (1, 4 * EXPERT)
    assert facts["family"] == "moesaic"


def test_every_dtype_is_named_most_common_first_when_they_are_mixed(tmp_path: Path) -> None:
    export_model(tiny_model(router="sigmoid", dtype=torch.bfloat16), tmp_path / "model")
    assert inspect_checkpoint(tmp_path / "model")["dtype"] == "BF16, F32"


def test_checkpoint_is_refused_when_a_tensor_is_missing_or_of_another_shape(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", vocab_size=62)
    with pytest.raises(CheckpointError, match=r"has shape \[61, 16\], expected \[62, 16\]"):
        inspect_checkpoint(tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", vocab_size=61, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="is missing"):
        inspect_checkpoint(tmp_path / "model")


def test_checkpoint_is_refused_when_its_numbers_are_of_no_known_dtype(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "model")
    tensors = {name: tensor.to(torch.int8) for name, tensor in read_folder(tmp_path / "model").items()}
    write_folder(tmp_path / "new", {}, tensors)
    (tmp_path / "new" / "config.json").write_bytes((tmp_path / "model" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="has dtype I8, expected one of"):
        inspect_checkpoint(tmp_path / "new")


def test_checkpoint_is_refused_when_its_family_is_unknown(tmp_path: Path) -> None:
    write_folder(tmp_path, {"model_type": "gpt2"}, {"a": torch.ones(1)})
    with pytest.raises(UnsupportedError, match="model_type 'gpt2' is not supported"):
        inspect_checkpoint(tmp_path)
