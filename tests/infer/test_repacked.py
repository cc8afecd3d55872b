"""Generating from repacked models: the same bits as from the original, read straight, never from damaged records."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moesaic.checkpoint import paged as paged_room
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.paged import PagedModel, open_paged_model
from moesaic.checkpoint.repack import repack_model
from moesaic.errors import UnsupportedError
from moesaic.infer.engine import LLM
from moesaic.memory import disk as disk_room
from moesaic.memory.file import WeightsFile
from moesaic.memory.page_error import PageError
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.router import Routing
from moesaic.ops.permute import group_by_expert
from moesaic.ops.quant import quantise_experts
from moesaic.ops.quantised_mixture import mix_experts_quantised
from moesaic.testing.tiny import tiny_model
from tests.infer.test_paged import _logits
from tests.infer.test_runner import PROMPTS

NUM_PAGES = 2 * 5
each_bits = pytest.mark.parametrize("bits", [8, 4])


class RoundedDispatcher:
    """All experts of a layer, rounded together: what pages of rounded ones are to equal."""

    def __init__(self, experts: Experts, bits: int) -> None:
        self._rounded = quantise_experts(experts.gate_up, experts.down, bits)

    def expect(self, routing: Routing) -> None:
        """Do nothing."""

    def mix(self, hidden_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        """Mix all at once."""
        permutation = group_by_expert(routing.token_ids_N, routing.expert_ids_N, len(hidden_TD), len(experts.down))
        return mix_experts_quantised(hidden_TD, routing.weights_N, self._rounded, permutation)


def _open(folder: Path, num_slots: int, dtype: str | None = None, budget: int | None = None) -> PagedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paged_room, "count_slots", lambda *_: num_slots)
        return open_paged_model(folder, dtype, budget)


def _logits_of_pages(folder: Path, num_slots: int, dtype: str | None = None) -> list[Tensor]:
    paged = _open(folder, num_slots, dtype)
    try:
        return _logits(paged.model, paged.pager)
    finally:
        paged.disk.close()


def _are_same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("num_slots", [2, 3, 7, NUM_PAGES])
def test_logits_are_those_of_the_original_when_repacked(family_folder: Path, num_slots: int, tmp_path: Path) -> None:
    repack_model(family_folder, tmp_path / "new")
    assert _are_same(_logits(load_model(family_folder)), _logits_of_pages(tmp_path / "new", num_slots))


@pytest.mark.parametrize("num_slots", [2, NUM_PAGES])
def test_logits_are_those_of_the_original_when_repacked_in_bfloat16(
    ids_folder: Path, num_slots: int, tmp_path: Path
) -> None:
    repack_model(ids_folder, tmp_path / "new", dtype="bfloat16")
    assert _are_same(_logits(load_model(ids_folder, "bfloat16")), _logits_of_pages(tmp_path / "new", num_slots))


@each_bits
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("num_slots", [2, 3, NUM_PAGES])
def test_logits_are_those_of_layers_rounded_as_a_whole_when_pages_have_few_bits(
    bits: int, dtype: str, num_slots: int, ids_folder: Path, tmp_path: Path
) -> None:
    repack_model(ids_folder, tmp_path / "new", bits)
    whole, exact = load_model(ids_folder, dtype), load_model(ids_folder)
    for layer, moe in whole.moe_layers().items():
        moe.dispatcher = RoundedDispatcher(exact.moe_layers()[layer].experts, bits)
    found = _logits_of_pages(tmp_path / "new", num_slots, dtype)
    assert _are_same(_logits(whole), found)
    assert not _are_same(_logits(load_model(ids_folder, dtype)), found), "rounding shows"


@each_bits
def test_tokens_come_in_the_dtype_of_the_core_when_none_is_asked_for(bits: int, tmp_path: Path) -> None:
    export_model(tiny_model(dtype=torch.bfloat16), tmp_path / "old")
    repack_model(tmp_path / "old", tmp_path / "new", bits)
    assert {each.dtype for each in _logits_of_pages(tmp_path / "new", 3)} == {torch.bfloat16}


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_pages_are_read_straight_into_slots_when_repacked(
    bits: int | None, ids_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repack_model(ids_folder, tmp_path / "new", bits)
    bounced, straight = set(), []
    through, fill = WeightsFile.read_through, WeightsFile._fill

    def read_through(file: WeightsFile, *rest: Any) -> np.ndarray:
        bounced.add(file.path.name)
        return through(file, *rest)

    def read_straight(file: WeightsFile, offset: int, *rest: Any) -> None:
        if file.path.name.startswith("pages-"):
            straight.append(file.is_direct)
        fill(file, offset, *rest)

    monkeypatch.setattr(WeightsFile, "read_through", read_through)
    monkeypatch.setattr(WeightsFile, "_fill", read_straight)
    paged = _open(tmp_path / "new", 3, budget=2**40)
    _logits(paged.model, paged.pager)
    paged.disk.close()
    if not any(straight):
        pytest.skip("this file system takes no direct reads")
    assert all(straight)
    assert bounced == {"core.safetensors"}


def _flip(folder: Path, page: int) -> None:
    """Change one bit within a page, counted through all files."""
    layer, expert = divmod(page, 5)
    file = folder / f"pages-{layer + 1:05d}-of-00002.safetensors"
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    size = (len(content) - header) // 5
    content[header + expert * size + 100] ^= 8
    file.write_bytes(content)


@pytest.mark.parametrize("bits", [None, 4])
def test_others_go_on_when_a_record_of_one_prompt_is_damaged(
    bits: int | None, ids_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_room, "count_slots", lambda *_: 3)
    repack_model(ids_folder, tmp_path / "new", bits)
    whole = LLM(tmp_path / "new")
    good = whole.generate(PROMPTS, max_tokens=8)
    whole.close()
    outcomes = set()
    for page in range(NUM_PAGES):
        shutil.copytree(tmp_path / "new", tmp_path / f"bad-{page}")
        _flip(tmp_path / f"bad-{page}", page)
        llm = LLM(tmp_path / f"bad-{page}")
        ended = {delta.index: delta.completion for delta in llm.stream(PROMPTS, max_tokens=8) if delta.completion}
        found = [ended[index] for index in range(len(PROMPTS))]
        for one, other in zip(good, found, strict=True):
            if other.finish_reason == "error":
                layer, expert = divmod(page, 5)
                assert other.error is not None
                assert other.error.startswith(f"expert {expert} of layer {layer}: '{tmp_path}/bad-{page}/pages-0000")
                assert "' is damaged: " in other.error
                assert other.token_ids == one.token_ids[: len(other.token_ids)], "no wrong token"
            else:
                assert other == one
        outcomes.add(tuple(each.finish_reason == "error" for each in found))
        pager = llm._paged.pager
        assert pager is not None
        resident = pager.num_pages - pager.num_missing
        assert len(pager._cache._free) + pager._cache.num_loading + resident == 3, "no slot is lost"
        llm.close()
    assert any(any(each) and not all(each) for each in outcomes), "one fails, another goes on"


def test_loading_is_refused_when_every_expert_has_a_slot_and_one_is_damaged(ids_folder: Path, tmp_path: Path) -> None:
    repack_model(ids_folder, tmp_path / "new")
    _flip(tmp_path / "new", 7)
    with pytest.raises(PageError, match=r"expert 2 of layer 1: '.*pages-00002-of-00002\.safetensors' is damaged: "):
        LLM(tmp_path / "new")


def test_checksums_are_compared_once_when_pages_come_again(
    ids_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repack_model(ids_folder, tmp_path / "new")
    compared: list[int] = []
    real = disk_room.zlib.crc32
    monkeypatch.setattr(disk_room.zlib, "crc32", lambda content: compared.append(len(content)) or real(content))
    paged = _open(tmp_path / "new", 2)
    _logits(paged.model, paged.pager)
    paged.disk.close()
    assert paged.stats()["evictions"] > NUM_PAGES
    assert compared == [4096] * NUM_PAGES


@each_bits
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtype_is_refused_when_experts_of_few_bits_are_not_computed_in_it(
    bits: int, dtype: str, ids_folder: Path, tmp_path: Path
) -> None:
    repack_model(ids_folder, tmp_path / "new", bits)
    with pytest.raises(UnsupportedError, match=f"new' has experts of {bits} bits, which are not computed in {dtype}"):
        LLM(tmp_path / "new", dtype=dtype)


def test_dtype_is_refused_with_the_way_out_when_records_are_of_another(ids_folder: Path, tmp_path: Path) -> None:
    repack_model(ids_folder, tmp_path / "new")
    with pytest.raises(UnsupportedError, match=r"new' has pages of float32, .* bfloat16 was asked for") as caught:
        LLM(tmp_path / "new", dtype="bfloat16")
    assert f"moesaic convert {tmp_path / 'new'} NEW --to moesaic --dtype bfloat16" in caught.value.hint
