"""Experts as pages: the same logits bit for bit at every budget, by every policy, in both modes."""

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moesaic.checkpoint import budget as budget_room
from moesaic.checkpoint import paged as paged_room
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.paged import PagedModel, open_paged_model
from moesaic.errors import CheckpointError, ConfigError, MemoryBudgetError, RequestError
from moesaic.infer.engine import LLM
from moesaic.infer.runner import Runner
from moesaic.infer.sequence import Sequence
from moesaic.memory import pager as pager_room
from moesaic.memory.file import WeightsFile
from moesaic.memory.ledger import Ledger
from moesaic.memory.mode import Mode
from moesaic.memory.page_error import PageError
from moesaic.memory.policy import POLICIES
from moesaic.memory.room import Room
from moesaic.models.model import LanguageModel
from moesaic.testing.tiny import tiny_model
from tests.infer.test_runner import PROMPTS, _sequences

NUM_PAGES = 2 * 5


@pytest.fixture
def set_slots(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a model have so many slots, whatever memory there is."""

    def set_slots(num_slots: int) -> None:
        monkeypatch.setattr(paged_room, "count_slots", lambda *_: num_slots)

    return set_slots


def _open(folder: Path, dtype: str | None = None, policy: str = "decayed") -> PagedModel:
    return open_paged_model(folder, dtype, None, policy)


def _logits(model: LanguageModel, pager: Any = None, num_tokens: int = 6) -> list[Tensor]:
    """Return the logits of a prompt pass and of greedy steps."""
    sequences = _sequences(num_tokens)
    with Runner(model, sequences, None, pager) as runner:
        steps = [runner.prefill(sequences)]
        for _ in range(num_tokens - 1):
            for sequence in sequences:
                sequence.accept(sequence.choose(steps[-1][sequence.index]))
            steps.append(runner.decode(sequences))
    return steps


def _force_mode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pager_room, "choose_mode", lambda step, *_: Mode(name, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["ring", "cache", None])
@pytest.mark.parametrize("num_slots", [2, 3, 7, NUM_PAGES])
def test_logits_are_those_of_the_whole_model_when_experts_are_pages(
    family_folder: Path, num_slots: int, mode: str | None, set_slots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not None:
        _force_mode(mode, monkeypatch)
    whole = _logits(load_model(family_folder))
    set_slots(num_slots)
    paged = _open(family_folder)
    found = _logits(paged.model, paged.pager)
    paged.disk.close()
    assert all(torch.equal(one, other) for one, other in zip(whole, found, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_logits_are_those_of_the_whole_model_when_dtype_and_policy_are(
    ids_folder: Path, policy: str, dtype: str, set_slots: Any
) -> None:
    whole = _logits(load_model(ids_folder, dtype))
    set_slots(3)
    paged = _open(ids_folder, dtype, policy)
    found = _logits(paged.model, paged.pager)
    paged.disk.close()
    assert all(torch.equal(one, other) for one, other in zip(whole, found, strict=True))
    assert paged.stats()["evictions"] > 0


def test_nothing_is_paged_when_the_model_has_no_experts(tmp_path: Path) -> None:
    export_model(tiny_model(num_experts=0, num_experts_per_tok=0), tmp_path / "model")
    llm = LLM(tmp_path / "model", memory="8GiB")
    assert llm.generate([5], max_tokens=2)[0].usage.completion_tokens == 2
    assert "hits" not in llm.stats()
    llm.close()


@pytest.fixture
def bad_pages(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Offsets that cannot be read."""
    bad: set[int] = set()
    real = WeightsFile.read

    def read(file: WeightsFile, offset: int, *rest: Any) -> None:
        if offset in bad:
            raise CheckpointError(f"cannot read '{file.path}' at byte {offset}: injected", "look at the disk")
        real(file, offset, *rest)

    monkeypatch.setattr(WeightsFile, "read", read)
    return bad


def check_that_others_go_on(llm: LLM, bad_pages: set[int]) -> None:
    """Let each page fail in turn: the prompts that need it end with its error, the others as if nothing had been."""
    good = llm.generate(PROMPTS, max_tokens=8)
    pager = llm._paged.pager
    assert pager is not None
    outcomes = set()
    for layer, pages in pager._loader._pages.items():
        for expert, page in enumerate(pages):
            bad_pages.clear()
            bad_pages.add(page[0].extent.offset)
            ended = {delta.index: delta.completion for delta in llm.stream(PROMPTS, max_tokens=8) if delta.completion}
            found = [ended[index] for index in range(len(PROMPTS))]
            for one, other in zip(good, found, strict=True):
                if other.finish_reason == "error":
                    assert other.error is not None
                    assert other.error.startswith(f"expert {expert} of layer {layer}: cannot read '")
                    assert other.token_ids == one.token_ids[: len(other.token_ids)], "no wrong token"
                else:
                    assert other == one
            outcomes.add(tuple(each.finish_reason == "error" for each in found))
    assert any(any(each) and not all(each) for each in outcomes), "one fails, another goes on"
    bad_pages.clear()
    assert llm.generate(PROMPTS, max_tokens=8) == good
    llm.close()


def test_others_go_on_when_the_experts_of_one_prompt_cannot_be_read(
    ids_folder: Path, set_slots: Any, bad_pages: set[int]
) -> None:
    set_slots(3)
    check_that_others_go_on(LLM(ids_folder), bad_pages)


def test_expert_is_asked_for_once_a_step_however_many_sequences_ask_for_it(ids_folder: Path, set_slots: Any) -> None:
    set_slots(3)
    llm = LLM(ids_folder)
    llm.generate([[5, 6, 7]], max_tokens=6, ignore_eos=True)
    alone = llm.stats()
    llm.close()
    llm = LLM(ids_folder)
    llm.generate([[5, 6, 7]] * 4, max_tokens=6, ignore_eos=True)
    together = llm.stats()
    llm.close()
    asked = [stats["hits"] + stats["misses"] for stats in (alone, together)]
    assert asked[0] == asked[1] > 0, "four that go the same way ask for what one does"


def test_request_fails_when_no_prompt_can_be_answered(ids_folder: Path, set_slots: Any, bad_pages: set[int]) -> None:
    set_slots(3)
    llm = LLM(ids_folder)
    pager = llm._paged.pager
    assert pager is not None
    bad_pages |= {page[0].extent.offset for pages in pager._loader._pages.values() for page in pages}
    with pytest.raises(PageError, match="cannot read"):
        llm.generate(PROMPTS, max_tokens=8)
    llm.close()


def test_model_is_paged_within_four_fifths_when_it_takes_more_than_is_free(
    ids_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 4 * 2**30
    monkeypatch.setattr(budget_room, "available_bytes", lambda: free)
    assert LLM(ids_folder).stats()["budget_bytes"] is None
    monkeypatch.setattr(budget_room, "_SHARE", 2**-18)  # 16 KiB: less than the pages
    with pytest.raises(MemoryBudgetError, match="a budget of 16 KiB is too small"):
        LLM(ids_folder)


def test_budget_is_what_the_process_may_hold_when_more_is_asked_for(
    ids_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_room, "limit_bytes", lambda: 2 * 2**30)
    assert LLM(ids_folder, memory="64GiB").stats()["budget_bytes"] == 2 * 2**30
    assert LLM(ids_folder, memory="1GiB").stats()["budget_bytes"] == 2**30


def test_budget_is_refused_with_the_least_that_works_when_it_is_too_small(ids_folder: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="a budget of 1 MiB is too small: process ") as caught:
        LLM(ids_folder, memory="1MiB")
    assert caught.value.hint.startswith("give ")


def _disk_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("moesaic-disk-")}


def test_no_thread_is_left_when_a_model_is_refused(ids_folder: Path) -> None:
    before = _disk_threads()
    with pytest.raises(MemoryBudgetError):
        LLM(ids_folder, memory="1MiB")
    assert _disk_threads() <= before


@pytest.mark.parametrize("memory", [None, "1GiB"])
def test_closed_model_refuses_to_generate(ids_folder: Path, memory: str | None) -> None:
    llm = LLM(ids_folder, memory=memory)
    llm.close()
    with pytest.raises(RequestError, match="has been closed"):
        llm.stream(PROMPTS)


def test_threads_end_when_all_has_been_read_or_the_model_is_closed_or_forgotten(ids_folder: Path) -> None:
    before = _disk_threads()
    assert LLM(ids_folder).stats()["resident"] == NUM_PAGES
    assert _disk_threads() <= before
    llm = LLM(ids_folder, memory="8GiB")
    assert _disk_threads() - before
    llm.close()
    assert _disk_threads() <= before
    llm = LLM(ids_folder, memory="8GiB")
    del llm
    gc.collect()
    assert _disk_threads() <= before


@pytest.mark.parametrize("memory", ["much", "-1GiB", "0", "4 apples", ""])
def test_budget_is_refused_when_it_is_no_size(ids_folder: Path, memory: str) -> None:
    with pytest.raises(ConfigError, match="memory is "):
        LLM(ids_folder, memory=memory)


def test_pages_make_room_and_take_it_back_when_a_request_comes(ids_folder: Path, set_slots: Any) -> None:
    set_slots(8)
    paged = _open(ids_folder)
    pager = paged.pager
    assert pager is not None
    size, held = pager.pool.layout.num_bytes, paged.ledger.held
    ledger = Ledger(held + 100)
    for purpose, num_bytes in paged.ledger.holdings.items():
        ledger.reserve(purpose, num_bytes)
    room = Room(ledger, pager)
    room.take("keys and values", 100 + 2 * size + 1)
    assert pager.stats()["slots"] == 5
    room.take("activations", size - 1)
    assert pager.stats()["slots"] == 5
    with pytest.raises(MemoryBudgetError, match="activations would take"):
        room.take("activations", 100 * size)
    assert pager.stats()["slots"] == 5
    room.give_back("keys and values", 100 + 2 * size + 1)
    assert pager.stats()["slots"] == 7
    room.give_back("activations", size - 1)
    assert (pager.stats()["slots"], ledger.held) == (8, held)
    paged.disk.close()


def test_every_expert_has_a_slot_and_the_budget_is_told_when_it_is_large(ids_folder: Path) -> None:
    llm = LLM(ids_folder, memory="8GiB")
    assert llm.config == load_model(ids_folder).config
    stats = llm.stats()
    assert stats["resident"] == stats["pages"] == stats["slots"] == NUM_PAGES
    assert stats["budget_bytes"] == 8 * 2**30
    assert stats["held_bytes"] == sum(stats["holdings_bytes"].values()) <= stats["most_bytes"]
    llm.close()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_logits_are_those_alone_in_any_batch_when_deterministic(
    ids_folder: Path, dtype: str, set_slots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[int, ...], list[Tensor]] = {}
    choose = Sequence.choose

    def note(sequence: Sequence, logits_V: Tensor) -> int:
        seen.setdefault(tuple(sequence.prompt_ids), []).append(logits_V.clone())
        return choose(sequence, logits_V)

    monkeypatch.setattr(Sequence, "choose", note)
    set_slots(3)
    llm = LLM(ids_folder, dtype=dtype, deterministic=True)
    alone = [llm.generate(prompt, max_tokens=9)[0] for prompt in PROMPTS]
    expected, seen = seen, {}
    assert llm.generate(PROMPTS[::-1], max_tokens=9) == alone[::-1]
    assert seen.keys() == expected.keys()
    for prompt, logits in expected.items():
        assert all(torch.equal(one, other) for one, other in zip(logits, seen[prompt], strict=True))
    llm.close()


def test_next_layer_is_guessed_and_nothing_changes_when_tokens_come_one_by_one(
    ids_folder: Path, set_slots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _force_mode("cache", monkeypatch)
    whole = _logits(load_model(ids_folder), num_tokens=12)
    set_slots(6)
    paged = _open(ids_folder)
    assert all(torch.equal(one, other) for one, other in zip(whole, _logits(paged.model, paged.pager, 12), strict=True))
    stats = paged.stats()
    assert stats["guesses_right"] + stats["guesses_wrong"] > 0
    paged.disk.close()


@pytest.mark.parametrize("mode", ["ring", "cache", None])
@pytest.mark.parametrize("num_slots", [2, 3, 4, 7, 15])
def test_pregated_model_is_the_same_when_its_experts_are_pages(
    num_slots: int, mode: str | None, tmp_path: Path, set_slots: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not None:
        _force_mode(mode, monkeypatch)
    export_model(tiny_model(pregated=True, num_hidden_layers=3), tmp_path / "model")
    whole = _logits(load_model(tmp_path / "model"), num_tokens=12)
    set_slots(num_slots)
    paged = _open(tmp_path / "model")
    found = _logits(paged.model, paged.pager, num_tokens=12)
    paged.disk.close()
    assert all(torch.equal(one, other) for one, other in zip(whole, found, strict=True))
