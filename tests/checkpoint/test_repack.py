"""Repacked models: what is written, that nothing is lost, what is refused. Killed conversions: test_repack_kill.py."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from moesaic.checkpoint.convert import convert_to_hf, convert_to_moesaic
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.page_index import CORE, PAGES
from moesaic.checkpoint.repack import repack_model
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.memory.page import ALIGNMENT
from moesaic.models.model import LanguageModel
from moesaic.models.table import FAMILIES, NATIVE, expand_model
from moesaic.ops.quant import quantise_experts
from moesaic.testing.tiny import tiny_model
from moesaic.tokenizer.bpe import train_bpe
from tests.checkpoint.stored import read_folder
from tests.models.foreign import load_foreign

each_bits = pytest.mark.parametrize("bits", [8, 4])


def _model(model_type: str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    fields = expand_model({"model_type": model_type})
    fields = {name: fields[name] for name in FAMILIES[model_type].traits} if model_type != NATIVE else {}
    if fields.get("shared_expert_gate"):
        fields["shared_expert_intermediate_size"] = 8
    if model_type == NATIVE:
        fields = {"router": "sigmoid", "mlp_only_layers": [1], "num_hidden_layers": 4}
    return tiny_model(model_type=model_type, dtype=dtype, **fields)


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    same = (tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items())
    return first.keys() == second.keys() and all(same)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _records(folder: Path) -> dict[str, Tensor]:
    """Return what lies in the files of pages."""
    files = sorted(folder.glob("pages-*.safetensors"))
    return {name: record for file in files for name, record in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", [*sorted(name for name, family in FAMILIES.items() if family.experts), NATIVE])
def test_every_bit_comes_back_when_repacked_and_converted_back(
    model_type: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    export_model(_model(model_type, dtype), tmp_path / "old", shard_bytes=20_000)
    convert_to_moesaic(str(tmp_path / "old"), tmp_path / "new", None, None, lambda *_: None)
    old, new = (dict(load_model(tmp_path / name).state_dict()) for name in ("old", "new"))
    assert _same(old, new)
    convert_to_hf(str(tmp_path / "new"), tmp_path / "back", None)
    assert _same(read_folder(tmp_path / "old"), read_folder(tmp_path / "back"))
    assert (tmp_path / "old" / "config.json").read_bytes() == (tmp_path / "back" / "config.json").read_bytes()


def test_folder_holds_core_and_pages_and_settings_when_repacked(tmp_path: Path) -> None:
    train_bpe(["some words"], vocab_size=258).save(tmp_path / "tokenizer")
    export_model(tiny_model(eos_token_id=3), tmp_path / "old", tokenizer=tmp_path / "tokenizer")
    repack_model(tmp_path / "old", tmp_path / "new")
    files = {path.name for path in (tmp_path / "new").iterdir()}
    pages = {"pages-00001-of-00002.safetensors", "pages-00002-of-00002.safetensors"}
    settings = {path.name for path in (tmp_path / "old").iterdir()} - {"model.safetensors"}
    assert files == {PAGES, CORE, *pages, *settings}
    assert all((tmp_path / "new" / name).read_bytes() == (tmp_path / "old" / name).read_bytes() for name in settings)
    old = load_file(tmp_path / "old" / "model.safetensors")
    assert _same(
        load_file(tmp_path / "new" / CORE), {name: each for name, each in old.items() if ".experts." not in name}
    )


def test_transformers_takes_it_for_no_model_when_repacked(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "new")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        load_foreign(tmp_path / "new", torch.float32)


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_records_are_aligned_and_have_checksums_when_repacked(bits: int | None, tmp_path: Path) -> None:
    export_model(tiny_model(dtype=torch.bfloat16), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "new", bits)
    index = json.loads((tmp_path / "new" / PAGES).read_text())
    size, records = index["record"]["num_bytes"], _records(tmp_path / "new")
    assert size % ALIGNMENT == 0
    assert len(records) == 10
    for layer, file in index["layers"].items():
        content = (tmp_path / "new" / file["name"]).read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        assert header % ALIGNMENT == 0
        for expert, checksum in enumerate(file["checksums"]):
            record = records[f"layers.{layer}.experts.{expert}"]
            assert record.dtype == torch.uint8
            assert record.numpy().tobytes() == content[header + expert * size :][:size]
            assert f"{zlib.crc32(record.numpy()):08x}" == checksum
    assert (index["bits"], index["checksum"]) == (bits, "crc32")


@each_bits
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_records_are_those_of_the_whole_layer_when_experts_are_rounded_one_by_one(
    bits: int, dtype: str | None, tmp_path: Path
) -> None:
    model = tiny_model(dtype=torch.bfloat16, hidden_size=80, moe_intermediate_size=70)
    export_model(model, tmp_path / "old")
    index = repack_model(tmp_path / "old", tmp_path / "new", bits, dtype)
    records = _records(tmp_path / "new")
    for layer, moe in model.moe_layers().items():
        whole = quantise_experts(moe.experts.gate_up, moe.experts.down, bits)
        stacked = torch.stack([records[f"layers.{layer}.experts.{expert}"] for expert in range(5)])
        for name, values in index.layout.views(stacked).items():
            assert torch.equal(values, getattr(whole, name))
    core = load_file(tmp_path / "new" / CORE)
    assert {tensor.dtype for tensor in core.values()} == {torch.float32 if dtype else torch.bfloat16}


@pytest.mark.parametrize(("bits", "least"), [(8, 42), (4, 19.5)])
def test_cost_of_rounding_is_kept_by_layer_and_expert_when_weights_are_gaussian(
    bits: int, least: float, tmp_path: Path
) -> None:
    model = tiny_model(hidden_size=128, moe_intermediate_size=64)
    model.decoder.layers[1].moe.experts.down.data[2].zero_()
    export_model(model, tmp_path / "old")
    index = repack_model(tmp_path / "old", tmp_path / "new", bits)
    assert index.files[1].decibels["down"][2] is None
    for file in index.files.values():
        assert file.decibels.keys() == {"gate_up", "down"}
        known = [each for costs in file.decibels.values() for each in costs if each is not None]
        assert all(least < each < least + 6 for each in known)
        assert len(known) >= 9


@each_bits
def test_bytes_are_the_same_when_rounded_from_the_model_or_from_its_records(bits: int, tmp_path: Path) -> None:
    export_model(tiny_model(dtype=torch.bfloat16), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "records")
    for source in ("old", "records"):
        repack_model(tmp_path / source, tmp_path / f"from-{source}", bits)
    assert _contents(tmp_path / "from-old") == _contents(tmp_path / "from-records")


@pytest.mark.parametrize("source", ["old", "records"])
def test_weights_are_cast_once_when_another_dtype_is_asked_for(source: str, tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "records")
    repack_model(tmp_path / source, tmp_path / "new", dtype="bfloat16")
    expected = tiny_model(dtype=torch.bfloat16).state_dict()
    assert _same(dict(expected), dict(load_model(tmp_path / "new").state_dict()))
    assert _same(dict(expected), dict(load_model(tmp_path / "records", "bfloat16").state_dict()))


def test_checkpoint_of_a_run_is_repacked_with_its_tokenizer_when_named(tmp_path: Path) -> None:
    model = tiny_model()
    train_bpe(["some words"], vocab_size=258).save(tmp_path / "run" / "tokenizer")
    state = {"step": 3, "config": {"model": model.config.model_dump(mode="json")}}
    store = CheckpointStore(tmp_path / "run" / "checkpoints", 2, True)
    path = store.save(Snapshot(state, {"model": model.state_dict()}))
    repack_model(path, tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    assert _same(dict(model.state_dict()), dict(load_model(tmp_path / "new").state_dict()))


def test_every_expert_is_told_when_progress_is_listened_to(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "old")
    told: list[tuple[int, int]] = []
    repack_model(tmp_path / "old", tmp_path / "new", on_progress=lambda *counts: told.append(counts))
    assert told == [(count, 10) for count in range(1, 11)]


@pytest.mark.parametrize(
    "use",
    [
        lambda folder, _: load_model(folder),
        lambda folder, new: convert_to_hf(str(folder), new, None),
        lambda folder, new: repack_model(folder, new),
        lambda folder, new: repack_model(folder, new, 4),
    ],
    ids=["load", "to_hf", "repack", "round_again"],
)
@each_bits
def test_rounded_weights_are_refused_when_exact_ones_are_needed(
    bits: int, use: Callable[[Path, Path], Any], tmp_path: Path
) -> None:
    export_model(tiny_model(), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "few", bits)
    with pytest.raises(UnsupportedError, match=f"few' has experts of {bits} bits, made for generating") as caught:
        use(tmp_path / "few", tmp_path / "new")
    assert caught.value.hint == "give the model that it was converted from"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("bits", [2, 16, 0])
def test_repacking_is_refused_when_there_are_no_such_bits(bits: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"experts of {bits} bits were asked for"):
        repack_model(tmp_path, tmp_path / "new", bits)


def test_repacking_is_refused_when_the_dtype_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown dtype 'int8'"):
        convert_to_moesaic(str(tmp_path / "none"), tmp_path / "new", None, "int8", lambda *_: None)


def test_repacking_is_refused_when_the_model_has_no_experts(tmp_path: Path) -> None:
    export_model(tiny_model(num_experts=0, num_experts_per_tok=0), tmp_path / "old")
    with pytest.raises(UnsupportedError, match="old' has no experts"):
        repack_model(tmp_path / "old", tmp_path / "new")


@each_bits
def test_rounding_is_refused_when_tokens_would_be_of_a_dtype_that_is_not_computed(bits: int, tmp_path: Path) -> None:
    export_model(tiny_model(dtype=torch.float16), tmp_path / "old")
    with pytest.raises(UnsupportedError, match=f"is of float16, in which experts of {bits} bits are not") as caught:
        repack_model(tmp_path / "old", tmp_path / "new", bits)
    assert "--dtype bfloat16" in caught.value.hint
    repack_model(tmp_path / "old", tmp_path / "new", bits, "bfloat16")


@each_bits
def test_rounding_is_refused_with_the_expert_when_a_weight_is_not_finite(bits: int, tmp_path: Path) -> None:
    model = tiny_model()
    model.decoder.layers[1].moe.experts.down.data[3, 0, 0] = torch.nan
    export_model(model, tmp_path / "old")
    with pytest.raises(UnsupportedError, match="expert 3 of layer 1: down holds NaN or infinity"):
        repack_model(tmp_path / "old", tmp_path / "new", bits)
    assert not (tmp_path / "new").exists()


def test_repacking_is_refused_when_the_target_exists(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "old")
    with pytest.raises(CheckpointError, match="old' exists already"):
        repack_model(tmp_path / "old", tmp_path / "old")


def test_repacking_goes_on_when_the_disk_was_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_model(tiny_model(), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "expected")
    replace, replaced = os.replace, []

    def fail_at_the_second_layer(source: Path, target: Path) -> None:
        if Path(target).name.startswith("pages-00002"):
            raise OSError(28, "No space left on device")
        replaced.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_second_layer)
    with pytest.raises(CheckpointError, match=r"cannot write '.*new': .*No space left on device"):
        repack_model(tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(
        os, "replace", lambda source, target: (replaced.append(Path(target).name), replace(source, target))
    )
    repack_model(tmp_path / "old", tmp_path / "new")
    assert replaced.count("pages-00001-of-00002.safetensors") == 1
    assert _contents(tmp_path / "new") == _contents(tmp_path / "expected")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "new", "old"]


def test_repacking_begins_anew_when_the_source_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_model(tiny_model(), tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr("moesaic.checkpoint.repack.write_settings", lambda *_: (_ for _ in ()).throw(OSError("stop")))
        with pytest.raises(CheckpointError, match="stop"):
            repack_model(tmp_path / "old", tmp_path / "new")
    export_model(tiny_model(seed=3), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "new")
    assert _same(dict(tiny_model(seed=3).state_dict()), dict(load_model(tmp_path / "new").state_dict()))


@pytest.mark.parametrize("read", [load_model, lambda folder: convert_to_hf(str(folder), folder.parent / "back", None)])
def test_damage_is_told_when_a_record_is_read_whole(read: Callable[[Path], Any], tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "new")
    file = tmp_path / "new" / "pages-00002-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    content[-5000] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"pages-00002-of-00002.safetensors' is damaged: 4096 bytes from byte \d+ on"
    ):
        read(tmp_path / "new")
    assert not (tmp_path / "back").exists()
