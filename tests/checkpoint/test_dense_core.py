"""The dense core of a repacked model with linear maps of 8 bits: what is written, told and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moesaic.checkpoint.convert import convert_to_hf
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.inspect import inspect_checkpoint
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.page_index import CORE, PAGES, PageIndex
from moesaic.checkpoint.repack import repack_model
from moesaic.checkpoint.stored import open_model
from moesaic.errors import CheckpointError, ConfigError, UnsupportedError
from moesaic.ops.quant import quantise_matrix
from moesaic.testing.tiny import tiny_model

QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def rounded(tmp_path: Path) -> Path:
    """A repacked model, all of 8 bits, that may be damaged."""
    export_model(tiny_model(), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "new", 8, core_bits=8)
    return tmp_path / "new"


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / PAGES).read_text())
    change(content)
    (folder / PAGES).write_text(json.dumps(content))


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_matrices_are_rounded_and_all_else_stays_when_asked_for(dtype: str | None, tmp_path: Path) -> None:
    biases = {"attention_bias": True, "attention_output_bias": True}
    model = tiny_model(dtype=torch.bfloat16, hidden_size=80, model_type="olmoe", qk_norm="width", **biases)
    export_model(model, tmp_path / "old")
    index = repack_model(tmp_path / "old", tmp_path / "new", 8, dtype, core_bits=8)
    old, new = load_file(tmp_path / "old" / "model.safetensors"), load_file(tmp_path / "new" / CORE)
    attention = [f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in (0, 1) for name in "qkvo"]
    maps = {*attention, "lm_head.weight"}
    assert index.core_decibels.keys() == maps
    for name in maps:
        matrix, stem = quantise_matrix(old.pop(name)), name.removesuffix(".weight")
        assert torch.equal(new.pop(f"{stem}.blocks"), matrix.blocks)
        assert torch.equal(new.pop(f"{stem}.scales"), matrix.scales)
    rest = {name: tensor for name, tensor in old.items() if ".experts." not in name}
    assert f"{QUERY}.bias" in rest
    assert new.keys() == rest.keys()
    kept = torch.float32 if dtype else torch.bfloat16
    assert all(new[name].dtype == kept and torch.equal(new[name], each.to(kept)) for name, each in rest.items())
    assert open_model(tmp_path / "new").dtype == kept


def test_cost_of_rounding_is_told_when_weights_are_gaussian(tmp_path: Path) -> None:
    model = tiny_model(hidden_size=128)
    model.decoder.layers[1].attention.key.weight.data.zero_()
    export_model(model, tmp_path / "old")
    index = repack_model(tmp_path / "old", tmp_path / "new", 4, core_bits=8)
    assert index.core_decibels["model.layers.1.self_attn.k_proj.weight"] is None
    known = [each for each in index.core_decibels.values() if each is not None]
    assert len(known) == 8
    assert all(42 < each < 48 for each in known)
    assert PageIndex.load(tmp_path / "new") == index
    facts = inspect_checkpoint(tmp_path / "new")
    assert (facts["expert_bits"], facts["core_bits"], facts["worst_core_decibels"]) == (4, 8, min(known))
    exact = inspect_checkpoint(tmp_path / "old")
    assert (facts["parameters"], facts["active_parameters"]) == (exact["parameters"], exact["active_parameters"])
    assert facts["dense_core_bytes"] < 0.4 * exact["dense_core_bytes"]


def test_bytes_are_the_same_when_rounded_from_the_model_or_from_its_records(tmp_path: Path) -> None:
    export_model(tiny_model(dtype=torch.bfloat16), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "records")
    cores = []
    for source in ("old", "records"):
        repack_model(tmp_path / source, tmp_path / f"from-{source}", 8, core_bits=8)
        cores.append((tmp_path / f"from-{source}" / CORE).read_bytes())
    assert cores[0] == cores[1]


def test_index_of_an_earlier_version_is_read_when_it_tells_nothing_of_the_core(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "old")
    index = repack_model(tmp_path / "old", tmp_path / "new", 8)
    _edit(tmp_path / "new", lambda content: [content.pop("core_bits"), content.pop("core_decibels")])
    assert PageIndex.load(tmp_path / "new") == index
    assert "core_bits" not in inspect_checkpoint(tmp_path / "new")


@pytest.mark.parametrize(
    ("bits", "core_bits", "text"),
    [
        (8, 4, "a dense core of 4 bits was asked for"),
        (4, 0, "a dense core of 0 bits was asked for"),
        (None, 8, "a dense core of 8 bits was asked for, and experts that are not rounded"),
    ],
)
def test_rounding_is_refused_when_there_are_no_such_bits(
    bits: int | None, core_bits: int, text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        repack_model(tmp_path, tmp_path / "new", bits, core_bits=core_bits)


def test_rounding_is_refused_with_the_matrix_when_a_weight_is_not_finite(tmp_path: Path) -> None:
    model = tiny_model()
    model.decoder.layers[0].attention.query.weight.data[3, 0] = torch.nan
    export_model(model, tmp_path / "old")
    with pytest.raises(UnsupportedError, match=f"'{QUERY}.weight': matrix holds NaN or infinity"):
        repack_model(tmp_path / "old", tmp_path / "new", 8, core_bits=8)
    assert not (tmp_path / "new").exists()


def test_conversion_begins_anew_when_the_core_is_to_have_other_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tiny_model(), tmp_path / "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moesaic.checkpoint.repack.write_settings", interrupt)
        with pytest.raises(KeyboardInterrupt):
            repack_model(tmp_path / "old", tmp_path / "new", 8)
    plan = json.loads((tmp_path / ".converting-new" / "progress.json").read_text())["plan"]
    assert (plan["bits"], plan["core_bits"]) == (8, None)
    repack_model(tmp_path / "old", tmp_path / "new", 8, core_bits=8)
    repack_model(tmp_path / "old", tmp_path / "expected", 8, core_bits=8)
    assert all(path.read_bytes() == (tmp_path / "expected" / path.name).read_bytes() for path in tmp_path.glob("new/*"))


@pytest.mark.parametrize(
    "use",
    [
        lambda folder, _: load_model(folder),
        lambda folder, new: convert_to_hf(str(folder), new, None),
        lambda folder, new: repack_model(folder, new, 8, core_bits=8),
    ],
    ids=["load", "to_hf", "round_again"],
)
def test_rounded_weights_are_refused_when_exact_ones_are_needed(
    use: Callable[[Path, Path], Any], rounded: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match="new' has experts of 8 bits, made for generating alone"):
        use(rounded, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(core_bits=4),
        lambda content: content.update(core_bits="8"),
        lambda content: content.update(bits=None),
        lambda content: content.update(core_decibels=[1.0]),
        lambda content: content["core_decibels"].update({f"{QUERY}.weight": "loud"}),
    ],
)
def test_index_is_refused_when_it_is_damaged(change: Callable[[dict[str, Any]], Any], rounded: Path) -> None:
    _edit(rounded, change)
    with pytest.raises(CheckpointError, match=r"pages\.json' is damaged: "):
        open_model(rounded)


def test_core_is_refused_when_the_index_tells_of_another(rounded: Path, tmp_path: Path) -> None:
    _edit(rounded, lambda content: content.update(core_bits=None))
    with pytest.raises(CheckpointError, match=rf"'{QUERY}\.weight' is missing"):
        open_model(rounded)
    repack_model(tmp_path / "old", tmp_path / "floats", 8)
    _edit(tmp_path / "floats", lambda content: content.update(core_bits=8))
    with pytest.raises(CheckpointError, match=rf"'{QUERY}\.blocks' is missing"):
        open_model(tmp_path / "floats")


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        (
            f"{QUERY}.blocks",
            lambda tensor: tensor[:-1],
            r"\.blocks' has shape \[1, 1, 32, 64\], expected \[2, 1, 32, 64\]",
        ),
        (f"{QUERY}.blocks", lambda tensor: tensor.float(), r"\.blocks' has dtype F32, expected one of I8"),
        (f"{QUERY}.scales", lambda tensor: tensor.bfloat16(), r"\.scales' has dtype BF16, expected one of F32"),
    ],
)
def test_core_is_refused_when_a_rounded_matrix_is_not_what_it_should_be(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], text: str, rounded: Path
) -> None:
    tensors = load_file(rounded / CORE)
    save_file(tensors | {name: change(tensors[name]).clone()}, rounded / CORE)
    with pytest.raises(CheckpointError, match=text):
        open_model(rounded)


def test_core_is_refused_when_it_is_cut_short(rounded: Path) -> None:
    (rounded / CORE).write_bytes((rounded / CORE).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cannot read '.*core\.safetensors'"):
        open_model(rounded)
