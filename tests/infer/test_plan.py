"""What is planned is what `LLM` does, for every family."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.checkpoint import budget as budget_room
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.stored import open_model
from moesaic.errors import CheckpointError, MemoryBudgetError, RequestError
from moesaic.infer.engine import LLM
from moesaic.infer.plan import plan_inference, size_model
from moesaic.memory.plan import ModelSizes, plan_capacity
from moesaic.testing.tiny import tiny_model

RATES = {"memory": 1e9, "disk": 1e8, "arithmetic": 1e10}
PROMPT = [5, 3, 8, 1, 7, 7, 2]


@pytest.fixture(autouse=True)
def _known_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process always hold as much: it is measured anew by each model that is opened."""
    monkeypatch.setattr(budget_room, "held_bytes", lambda: 2**28)


def _sizes(folder: Path, dtype: torch.dtype = torch.float32) -> ModelSizes:
    return size_model(open_model(folder), dtype, len(PROMPT))


@pytest.mark.parametrize("num_slots", [2, 5, 9, 10])
def test_slots_and_bytes_are_those_that_generating_has_when_planned(family_folder: Path, num_slots: int) -> None:
    sizes = _sizes(family_folder)
    assert (sizes.num_pages, sizes.num_layers, sizes.experts_per_token) == (10, 2, 2)
    budget = sizes.budget_for(num_slots) + 17
    planned = plan_capacity(sizes, budget)
    llm = LLM(family_folder, memory=budget)
    stats = llm.stats()
    assert stats["slots"] == planned.num_slots >= planned.num_in_use == num_slots
    assert stats["held_bytes"] == sum(sizes.fixed.values()) + planned.num_slots * sizes.page_bytes
    llm.generate([PROMPT], ignore_eos=True)
    assert llm.stats()["most_bytes"] == max(stats["held_bytes"], sum(planned.holdings.values())) <= budget
    assert llm.stats()["slots"] == planned.num_slots, "they are given back"
    llm.close()


def test_prompt_is_answered_at_the_smallest_budget_and_not_below(family_folder: Path) -> None:
    least = plan_inference(family_folder, prompt_tokens=7, stated=RATES)["smallest_budget_bytes"]
    llm = LLM(family_folder, memory=least)
    assert len(llm.generate([PROMPT], max_tokens=57, ignore_eos=True)[0].token_ids) == 57
    llm.close()
    with pytest.raises(MemoryBudgetError, match=r"a budget of .* is too small: process .* keys and values .* 2 expert"):
        plan_inference(family_folder, budget=least - 1, prompt_tokens=7, stated=RATES)
    llm = LLM(family_folder, memory=least - 1)
    with pytest.raises(MemoryBudgetError, match="would take"):
        llm.generate([PROMPT], max_tokens=57, ignore_eos=True)
    llm.close()


def test_sizes_are_those_worked_out_when_a_model_is_small(ids_folder: Path) -> None:
    sizes = _sizes(ids_folder)
    # 61 x 16 in table and head; in each of two layers 2 norms of 16, attention 16 x (16 + 8 + 8 + 16), router 5 x 16.
    layers = 2 * (2 * 16 + 16 * 48 + 5 * 16) + 16
    assert sizes.fixed["dense core"] == 4 * (2 * 61 * 16 + layers)
    assert sizes.dense_read_bytes == 4 * (61 * 16 + layers)
    assert (sizes.page_bytes, sizes.stored_page_bytes) == (4096, 4 * 3 * 16 * 12)
    # Two vectors of 2 x 4 in each of two layers, of as many tokens as the model reads.
    assert sizes.request["keys and values"] == 4 * 2 * 2 * 8 * 64
    assert sizes.prompt_operations == 2 * len(PROMPT) * (layers + 2 * 2 * 3 * 16 * 12)


def test_table_is_read_whole_when_it_is_the_head(tmp_path: Path) -> None:
    export_model(tiny_model(tie_word_embeddings=True), tmp_path / "model")
    sizes = _sizes(tmp_path / "model")
    assert sizes.dense_read_bytes == sizes.fixed["dense core"]


def test_pages_are_half_as_large_in_memory_when_the_dtype_is(ids_folder: Path) -> None:
    plan = plan_inference(ids_folder, "bfloat16", prompt_tokens=3, stated=RATES)
    assert (plan["dtype"], plan["stored_page_bytes"]) == ("bfloat16", 4 * 3 * 16 * 12)
    assert (
        plan["memory_bytes_per_token"]
        < plan_inference(ids_folder, prompt_tokens=3, stated=RATES)["memory_bytes_per_token"]
    )


def test_whole_model_is_planned_when_nobody_gives_a_budget(ids_folder: Path) -> None:
    plan = plan_inference(ids_folder, prompt_tokens=3, stated=RATES)
    assert not plan["budget_is_given"]
    assert plan["plan"]["budget"] == plan["whole_budget_bytes"]
    assert plan["plan"]["share"] == 1.0
    assert plan["plan"]["first_prompt_seconds"] == plan["plan"]["later_prompt_seconds"]


def test_four_fifths_of_the_free_memory_are_planned_when_the_model_takes_more(
    ids_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = _sizes(ids_folder).fixed["dense core"] + 10 * 4096
    monkeypatch.setattr(budget_room, "available_bytes", lambda: math.ceil(weights / 0.8))
    assert plan_inference(ids_folder, prompt_tokens=3, stated=RATES)["plan"]["share"] == 1.0
    monkeypatch.setattr(budget_room, "available_bytes", lambda: math.floor(weights / 0.8) - 2)
    with pytest.raises(MemoryBudgetError, match=r"a budget of 54.6 KiB is too small"):
        plan_inference(ids_folder, prompt_tokens=3, stated=RATES)


def test_budgets_begin_with_the_smallest_and_end_with_the_whole_when_told(ids_folder: Path) -> None:
    plan = plan_inference(ids_folder, prompt_tokens=3, stated=RATES)
    assert [row["num_in_use"] for row in plan["budgets"]] == [2, 3, 5, 8, 10]
    assert [row["budget"] for row in plan["budgets"]][:: len(plan["budgets"]) - 1] == [
        plan["smallest_budget_bytes"],
        plan["whole_budget_bytes"],
    ]
    for row in plan["budgets"]:
        taking_turns, overlapped = row["even"]["tokens_per_s"]
        assert 0 < taking_turns <= overlapped
    json.dumps(plan, allow_nan=False)


def test_rates_are_measured_when_they_are_not_stated(ids_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesaic.infer.plan.BUFFER_BYTES", 2**20)
    monkeypatch.setattr("moesaic.infer.plan.available_bytes", lambda: 2**30 + 999)
    plan = plan_inference(ids_folder, prompt_tokens=3, stated={"arithmetic": 5.0})
    assert plan["rates"]["arithmetic"] == 5.0
    assert (plan["rates_measured"], plan["rates_stated"]) == (["memory", "disk"], ["arithmetic"])
    assert all(rate > 0 for rate in plan["rates"].values())


def test_disk_is_left_alone_when_nothing_is_paged(tmp_path: Path) -> None:
    export_model(tiny_model(num_experts=0, num_experts_per_tok=0), tmp_path / "model")
    stated: dict[str, Any] = {"memory": 1e9, "arithmetic": 1e9}
    plan = plan_inference(tmp_path / "model", prompt_tokens=3, stated=stated)
    assert plan["rates"]["disk"] is None
    assert (plan["num_pages"], plan["plan"]["num_in_use"], len(plan["budgets"])) == (0, 0, 1)
    assert all(math.isfinite(rate) for rate in plan["plan"]["even"]["tokens_per_s"])
    json.dumps(plan, allow_nan=False)


def test_prompt_is_refused_when_the_model_does_not_read_as_much(ids_folder: Path) -> None:
    with pytest.raises(RequestError, match="a prompt of 64 tokens is too long: the model reads 64") as caught:
        plan_inference(ids_folder, prompt_tokens=64, stated=RATES)
    assert caught.value.hint == "plan for 63 tokens or fewer"


def test_prompt_is_as_long_as_the_model_reads_when_nobody_says(ids_folder: Path) -> None:
    assert plan_inference(ids_folder, stated=RATES)["prompt_tokens"] == 63


def test_files_are_named_when_they_do_not_fit_the_configuration(ids_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((ids_folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="no safetensors files"):
        plan_inference(tmp_path, prompt_tokens=3, stated=RATES)
