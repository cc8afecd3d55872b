"""A device between the experts and the host: the same logits bit for bit, where host memory stands for the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moesaic.checkpoint import paged as paged_room
from moesaic.checkpoint.budget import DENSE, choose_device_budget
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.paged import PagedModel, open_paged_model
from moesaic.checkpoint.repack import repack_model
from moesaic.errors import ConfigError, MemoryBudgetError, UnsupportedError
from moesaic.hw.device import find_device
from moesaic.infer import engine as engine_room
from moesaic.infer.engine import LLM
from moesaic.infer.runner import Runner
from moesaic.memory import pager as pager_room
from moesaic.memory.mode import Mode
from moesaic.nn import decoder as decoder_room
from moesaic.ops import paged_mixture as mixture_room
from moesaic.testing.tiny import tiny_model
from tests.infer.test_paged import bad_pages, check_that_others_go_on  # noqa: F401
from tests.infer.test_runner import PROMPTS, _sequences

NUM_PAGES, NUM_EXPERTS = 2 * 5, 5
MIB = 2**20


@pytest.fixture
def set_slots(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let device and host have so many slots, whatever memory there is."""

    def set_slots(num_device: int, num_host: int) -> None:
        def count_slots(budget: int | None, taken: dict[str, int], *_: int) -> int:
            return num_device if DENSE in taken else num_host

        monkeypatch.setattr(paged_room, "count_slots", count_slots)

    return set_slots


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `LLM` take host memory for a device's."""
    monkeypatch.setattr(engine_room, "_choose_device", lambda *_: ("cpu", None))


def _open(folder: Path, dtype: str | None = None) -> PagedModel:
    return open_paged_model(folder, dtype, None, device="cpu")


def _logits(model: Any, pager: Any = None, call: Callable[..., Tensor] = lambda run, given: run(given)) -> list[Tensor]:
    """Return the logits of a prompt pass and of greedy steps."""
    sequences = _sequences(6)
    with Runner(model, sequences, None, pager) as runner:
        steps = [call(runner.prefill, sequences)]
        for _ in range(5):
            for sequence in sequences:
                sequence.accept(sequence.choose(steps[-1][sequence.index]))
            steps.append(call(runner.decode, sequences))
    return steps


def _are_equal(whole: list[Tensor], found: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(whole, found, strict=True))


@pytest.mark.parametrize("mode", ["ring", "cache", None])
@pytest.mark.parametrize("num_host", [1, 4, NUM_PAGES])
@pytest.mark.parametrize("num_device", [2, 3, 7, NUM_PAGES])
def test_logits_are_those_of_the_whole_model_when_pages_come_through_the_host(
    ids_folder: Path, num_device: int, num_host: int, mode: str | None, set_slots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not None:
        monkeypatch.setattr(pager_room, "choose_mode", lambda step, *_: Mode(mode, 2))  # type: ignore[arg-type]
    whole = _logits(load_model(ids_folder))
    set_slots(num_device, num_host)
    paged = _open(ids_folder)
    assert _are_equal(whole, _logits(paged.model, paged.pager))
    stats = paged.stats()
    assert stats["host_hits"] + stats["host_misses"] >= stats["evictions"] + stats["resident"]
    assert stats["host_misses"] >= NUM_EXPERTS
    if num_host == NUM_PAGES:
        assert stats["host_misses"] <= NUM_PAGES, "no page is read twice"
    paged.close()


def test_logits_are_those_of_the_whole_model_when_any_family_is_on_a_device(
    family_folder: Path, set_slots: Any
) -> None:
    whole = _logits(load_model(family_folder))
    set_slots(3, 4)
    paged = _open(family_folder)
    assert _are_equal(whole, _logits(paged.model, paged.pager))
    paged.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_logits_are_those_of_the_whole_model_when_the_device_has_another_dtype(
    ids_folder: Path, dtype: str, set_slots: Any
) -> None:
    whole = _logits(load_model(ids_folder, dtype))
    set_slots(3, 4)
    paged = _open(ids_folder, dtype)
    assert _are_equal(whole, _logits(paged.model, paged.pager))
    paged.close()


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_logits_are_those_of_host_slots_when_a_repacked_model_is_on_a_device(
    bits: int | None, ids_folder: Path, tmp_path: Path, set_slots: Any
) -> None:
    repack_model(ids_folder, tmp_path / "new", bits)
    whole = open_paged_model(tmp_path / "new", None, None)
    set_slots(3, 4)
    paged = _open(tmp_path / "new")
    assert _are_equal(_logits(whole.model, whole.pager), _logits(paged.model, paged.pager))
    paged.close()


@pytest.mark.parametrize("backend", ["compiled", "torch"])
@pytest.mark.parametrize("traits", [{}, {"pregated": True, "num_hidden_layers": 3}, {"router": "sigmoid"}], ids=str)
def test_every_tensor_is_made_on_the_device_of_the_model(
    traits: dict[str, Any], backend: str, tmp_path: Path, set_slots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody says which, tensors are made without memory: one such among the model's own would raise."""
    export_model(tiny_model(**traits), tmp_path / "model")
    monkeypatch.setattr(mixture_room, "choose_backend", lambda *_: backend)
    build = decoder_room.build_frequencies

    def build_frequencies(*arguments: Any) -> tuple[Tensor, float]:
        with torch.device("cpu"):  # on the host whatever the device, which gets a copy
            return build(*arguments)

    monkeypatch.setattr(decoder_room, "build_frequencies", build_frequencies)

    def call(run: Callable[..., Tensor], given: Any) -> Tensor:
        with torch.device("meta"):
            return run(given)

    set_slots(3, 4)
    paged = _open(tmp_path / "model")
    found = _logits(paged.model, paged.pager, call)
    assert _are_equal(_logits(paged.model, paged.pager), found)
    paged.close()


@pytest.mark.usefixtures("stand_in")
def test_answers_are_the_same_when_a_device_computes(ids_folder: Path, set_slots: Any) -> None:
    expected = LLM(ids_folder).generate(PROMPTS, max_tokens=8, temperature=0.7, seed=3)
    set_slots(4, 5)
    llm = LLM(ids_folder)
    assert llm.generate(PROMPTS, max_tokens=8, temperature=0.7, seed=3) == expected
    stats = llm.stats()
    assert (stats["slots"], stats["holdings_bytes"]["dense core"]) == (4, 0), "the host has no dense core any more"
    page_bytes = stats["device_holdings_bytes"]["expert pages"] // 4
    assert stats["holdings_bytes"]["expert pages"] == 5 * page_bytes
    assert stats["bytes_copied"] == page_bytes * (stats["host_hits"] + stats["host_misses"])
    assert stats["device_held_bytes"] == sum(stats["device_holdings_bytes"].values()) < stats["device_most_bytes"]
    assert stats["device_budget_bytes"] is None
    llm.close()


@pytest.mark.usefixtures("stand_in")
def test_others_go_on_when_a_page_of_one_prompt_cannot_be_read_for_a_device(
    ids_folder: Path,
    set_slots: Any,
    bad_pages: set[int],  # noqa: F811
) -> None:
    set_slots(3, 2)
    check_that_others_go_on(LLM(ids_folder), bad_pages)


def test_nothing_is_left_on_the_host_when_the_device_holds_every_page(ids_folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    paged = open_paged_model(ids_folder, None, None, "decayed", lambda *each: seen.append(each), "cpu", 2**30)
    assert seen[-1] == (NUM_PAGES, NUM_PAGES)
    stats = paged.stats()
    assert (stats["resident"], stats["host_hits"], stats["host_misses"]) == (NUM_PAGES, 0, NUM_PAGES)
    assert stats["holdings_bytes"]["expert pages"] == 0
    assert paged.tier is not None
    assert not paged.tier._pool.memory.any()
    assert _are_equal(_logits(load_model(ids_folder)), _logits(paged.model, paged.pager))
    paged.close()


def test_dense_model_is_computed_by_a_device_when_it_has_no_experts(tmp_path: Path) -> None:
    export_model(tiny_model(num_experts=0, num_experts_per_tok=0), tmp_path / "model")
    paged = open_paged_model(tmp_path / "model", None, None, device="cpu", device_budget=2**30)
    assert _are_equal(_logits(load_model(tmp_path / "model")), _logits(paged.model))
    stats = paged.stats()
    assert "host_hits" not in stats
    assert stats["device_held_bytes"] == stats["device_holdings_bytes"]["dense core"] > 0
    paged.close()


def test_device_budget_is_kept_and_told_when_it_is_given(ids_folder: Path) -> None:
    whole = _open(ids_folder)
    dense = whole.stats()["device_holdings_bytes"]["dense core"]
    assert whole.pager is not None
    page = whole.pager.pool.layout.num_bytes
    with pytest.raises(MemoryBudgetError, match=r"on cpu, a budget of 1 MiB is too small: dense core .* a request"):
        open_paged_model(ids_folder, None, None, device="cpu", device_budget=MIB)
    with pytest.raises(MemoryBudgetError) as caught:
        open_paged_model(ids_folder, None, None, device="cpu", device_budget=dense + page)
    option, hint = caught.value.hint.split(": ")
    assert option == "--device-memory"
    least = int(hint.removeprefix("give ").removesuffix("MiB or more")) * MIB
    paged = open_paged_model(ids_folder, None, None, device="cpu", device_budget=least)
    stats = paged.stats()
    assert stats["device_held_bytes"] == dense + stats["slots"] * page <= stats["device_budget_bytes"] == least
    room = paged.make_room()
    with pytest.raises(MemoryBudgetError, match="keys and values would take 1 GiB") as refused:
        room.take("keys and values", 2**30)
    assert refused.value.hint.startswith("give a larger --device-memory, ")
    room.take("keys and values", 64 * MIB)
    room.give_back("keys and values", 64 * MIB)
    assert paged.stats()["slots"] == stats["slots"], "a device's slots do not give way"
    paged.close()


def test_host_budget_is_refused_when_it_is_too_small_for_a_device(ids_folder: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="a budget of 1 MiB is too small: process "):
        open_paged_model(ids_folder, None, MIB, device="cpu", device_budget=2**30)


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_device_is_refused_when_there_is_none_of_that_name(ids_folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown device '{name}'") as caught:
        LLM(ids_folder, device=name)
    assert caught.value.hint == "accepted: cpu, cuda, cuda:0, cuda:1 ..."


def test_device_is_refused_when_it_is_of_another_kind(ids_folder: Path) -> None:
    with pytest.raises(ConfigError, match="device 'meta' is not supported"):
        LLM(ids_folder, device="meta")


def test_device_is_refused_when_there_is_no_cuda(ids_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="device 'cuda' was asked for, and torch finds no CUDA device") as caught:
        LLM(ids_folder, device="cuda", device_memory="1GiB")
    assert "moesaic doctor" in caught.value.hint


def test_device_is_one_of_those_there_are_when_cuda_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert find_device("cuda") == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0)
    assert find_device("cpu:0") == torch.device("cpu")
    with pytest.raises(ConfigError, match="there is no device 'cuda:2'") as caught:
        find_device("cuda:2")
    assert caught.value.hint == "accepted: cuda:0 to cuda:1"


def test_device_budget_is_most_of_what_is_free_when_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000 * MIB, 2000 * MIB))
    assert choose_device_budget(device, None) == 800 * MIB
    assert choose_device_budget(device, 1500 * MIB) == (1000 - 256) * MIB
    assert choose_device_budget(device, 15 * MIB) == 15 * MIB
    assert choose_device_budget(torch.device("cpu"), None) is None


@pytest.mark.parametrize("device", [None, "cpu"])
def test_device_memory_is_refused_when_the_cpu_computes(ids_folder: Path, device: str | None) -> None:
    with pytest.raises(ConfigError, match="device_memory is given, and the CPU computes"):
        LLM(ids_folder, device=device, device_memory="1GiB")


def test_device_memory_is_refused_when_it_is_no_size(ids_folder: Path) -> None:
    with pytest.raises(ConfigError, match="device_memory is 'much'"):
        LLM(ids_folder, device="cuda", device_memory="much")


def test_nothing_of_a_device_is_told_when_the_cpu_computes(ids_folder: Path) -> None:
    llm = LLM(ids_folder, device="cpu")
    llm.generate([5], max_tokens=2)
    assert not [name for name in llm.stats() if name.startswith(("host_", "device_"))]
    assert llm._paged.tier is None
    llm.close()
