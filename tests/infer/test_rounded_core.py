"""Generating from models whose dense core is of 8 bits: the bits of whole layers at every budget, near the original."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from moesaic.checkpoint import budget as budget_room
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.lay_out import count_dense_bytes
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.paged import open_paged_model
from moesaic.checkpoint.repack import repack_model
from moesaic.checkpoint.stored import open_model
from moesaic.errors import UnsupportedError
from moesaic.infer.engine import LLM
from moesaic.infer.plan import size_model
from moesaic.memory.plan import ModelSizes
from moesaic.models.model import LanguageModel
from moesaic.nn.quantised_linear import QuantisedLinear, apply_quantised_linear, list_linear_maps
from moesaic.ops.quant import quantise_matrix
from moesaic.testing.tiny import tiny_model
from tests.infer.test_paged import _logits
from tests.infer.test_repacked import NUM_PAGES, RoundedDispatcher, _are_same, _logits_of_pages
from tests.infer.test_runner import PROMPTS

# Of logits against those of the original; tiny models of the families measure 33 to 36 dB.
LEAST_DB = 30.0


def _round(model: LanguageModel, exact: LanguageModel) -> LanguageModel:
    """Round a loaded model: what its repacked folder is to equal."""
    maps = {name: quantise_matrix(module.weight) for name, module in list_linear_maps(exact).items()}
    biases = {name: module.bias for name, module in list_linear_maps(model).items()}
    apply_quantised_linear(model)
    for name, matrix in maps.items():
        module = model.get_submodule(name)
        assert isinstance(module, QuantisedLinear)
        module.blocks, module.scales, module.bias = matrix.blocks, matrix.scales, biases[name]
    for layer, moe in model.moe_layers().items():
        moe.dispatcher = RoundedDispatcher(exact.moe_layers()[layer].experts, 8)
    return model


def _decibels(exact: list[Tensor], found: list[Tensor]) -> float:
    signal = sum(each.double().square().sum() for each in exact)
    noise = sum((one.double() - other.double()).square().sum() for one, other in zip(exact, found, strict=True))
    return float(10 * torch.log10(torch.as_tensor(signal / noise)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("num_slots", [2, NUM_PAGES])
def test_logits_are_those_of_a_model_rounded_as_a_whole_at_every_budget(
    family_folder: Path, dtype: str, num_slots: int, tmp_path: Path
) -> None:
    repack_model(family_folder, tmp_path / "new", 8, core_bits=8)
    whole = _round(load_model(family_folder, dtype), load_model(family_folder))
    assert _are_same(_logits(whole), _logits_of_pages(tmp_path / "new", num_slots, dtype))


def test_logits_are_near_the_originals_when_everything_is_rounded(family_folder: Path, tmp_path: Path) -> None:
    repack_model(family_folder, tmp_path / "experts", 8)
    repack_model(family_folder, tmp_path / "all", 8, core_bits=8)
    exact = _logits(load_model(family_folder))[:1]  # later ones may follow other tokens
    experts, everything = (_decibels(exact, _logits_of_pages(tmp_path / name, 3)[:1]) for name in ("experts", "all"))
    assert LEAST_DB < everything < experts


@pytest.mark.parametrize(
    "fields",
    [
        {"tie_word_embeddings": True},
        {"attention_bias": True, "attention_output_bias": True},
        {"shared_expert_intermediate_size": 8, "shared_expert_gate": True, "mlp_only_layers": [0]},
    ],
    ids=["tied", "biases", "shared and dense"],
)
def test_logits_do_not_depend_on_the_budget_when_the_model_has(fields: dict[str, object], tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.bfloat16, **fields)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_()
    export_model(model, tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "new", 8, core_bits=8)
    whole = _round(load_model(tmp_path / "old"), load_model(tmp_path / "old"))
    num_pages = 5 * len(model.moe_layers())
    for num_slots in (2, 4, num_pages):
        assert _are_same(_logits(whole), _logits_of_pages(tmp_path / "new", num_slots))
    names = open_model(tmp_path / "new").sources
    assert ("head.blocks" in names) == (model.head is not None)
    assert "decoder.embedding.weight" in names


def test_prompts_get_the_same_tokens_when_alone_and_in_a_batch(ids_folder: Path, tmp_path: Path) -> None:
    repack_model(ids_folder, tmp_path / "new", 4, "bfloat16", core_bits=8)
    llm = LLM(tmp_path / "new", deterministic=True)
    together = llm.generate(PROMPTS, max_tokens=8, ignore_eos=True)
    alone = [llm.generate([prompt], max_tokens=8, ignore_eos=True)[0] for prompt in PROMPTS]
    llm.close()
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_told_are_those_held_when_the_core_is_rounded(
    family_folder: Path, dtype: torch.dtype, tmp_path: Path
) -> None:
    repack_model(family_folder, tmp_path / "new", 8, core_bits=8)
    opened = open_paged_model(tmp_path / "new", str(dtype).removeprefix("torch."), None)
    opened.disk.close()
    state = {name: tensor for name, tensor in opened.model.state_dict().items() if ".moe.experts." not in name}
    # Routers are widened once they are loaded.
    widened = sum(each.numel() * (4 - dtype.itemsize) for name, each in state.items() if name.endswith("router.weight"))
    assert (
        count_dense_bytes(open_model(tmp_path / "new"), dtype) == sum(each.nbytes for each in state.values()) - widened
    )


def test_sizes_are_those_worked_out_when_a_model_is_small(
    ids_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_room, "held_bytes", lambda: 2**28)

    def size(folder: Path) -> ModelSizes:
        return size_model(open_model(folder), torch.float32, 7)

    repack_model(ids_folder, tmp_path / "new", 8, core_bits=8)
    exact, rounded = size(ids_folder), size(tmp_path / "new")
    # Blocks of 64 channels by 64 depths and scales: one for each map of attention and head, in two layers.
    maps = 9 * (64 * 64 + 4 * 64)
    floats = 61 * 16 + 2 * (2 * 16 + 5 * 16) + 16
    assert rounded.fixed["dense core"] == maps + 4 * floats
    assert rounded.dense_read_bytes == maps + 4 * (floats - 61 * 16)
    assert rounded.prompt_operations == exact.prompt_operations


def test_dtype_is_refused_when_the_core_is_not_computed_in_it(ids_folder: Path, tmp_path: Path) -> None:
    repack_model(ids_folder, tmp_path / "new", 8, core_bits=8)
    with pytest.raises(UnsupportedError, match="has experts of 8 bits, which are not computed in float16"):
        LLM(tmp_path / "new", dtype="float16")
