"""The plan of a budget: worked by hand, and for any sizes within it and no better than it could be."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import MemoryBudgetError
from moesaic.memory import policy
from moesaic.memory.plan import (
    TRACED,
    ModelSizes,
    Rates,
    count_slots,
    expect_decode_rate,
    expect_prompt_seconds,
    expect_traced_hits,
    plan_capacity,
)

# Eight pages of 10 bytes in two layers; 100 bytes are taken, 30 of them by the prompt.
SIZES = ModelSizes(
    fixed={"process": 50, "dense core": 20},
    request={"keys and values": 30},
    page_bytes=10,
    stored_page_bytes=5,
    num_layers=2,
    num_experts=4,
    experts_per_token=2,
    dense_read_bytes=20,
    prompt_tokens=3,
    prompt_operations=600.0,
)
DENSE = replace(SIZES, page_bytes=0, stored_page_bytes=0, num_layers=0, num_experts=0, experts_per_token=0)
RATES = Rates(memory=100.0, disk=10.0, arithmetic=200.0)


@st.composite
def any_sizes(draw: Any) -> ModelSizes:
    """Draw a model with experts."""
    experts = draw(st.integers(1, 12))
    sizes = st.integers(0, 10**6)
    return ModelSizes(
        fixed={"process": draw(sizes), "dense core": draw(sizes)},
        request={"keys and values": draw(sizes), "activations": draw(sizes)},
        page_bytes=draw(st.integers(1, 10**5)),
        stored_page_bytes=draw(st.integers(1, 10**5)),
        num_layers=draw(st.integers(1, 6)),
        num_experts=experts,
        experts_per_token=draw(st.integers(1, experts)),
        dense_read_bytes=draw(st.integers(1, 10**6)),
        prompt_tokens=draw(st.integers(1, 100)),
        prompt_operations=draw(st.floats(1, 1e9)),
    )


def test_capacity_is_the_worked_one_when_half_of_the_experts_fit() -> None:
    found = plan_capacity(SIZES, 149)
    assert (found.num_slots, found.num_in_use, found.num_sections, found.share) == (7, 4, 1, 0.5)
    assert found.holdings == {"process": 50, "dense core": 20, "keys and values": 30, "expert pages": 40}


def test_nothing_is_paged_when_there_are_no_experts() -> None:
    found = plan_capacity(DENSE, 100)
    assert (found.num_slots, found.num_sections, found.share) == (0, 0, 1.0)
    assert expect_decode_rate(DENSE, RATES, found.share) == (5.0, 5.0)
    assert expect_prompt_seconds(DENSE, RATES, 0) == 3.0
    with pytest.raises(MemoryBudgetError, match="a budget of 99 B is too small: process 50 B, dense core 20 B, keys"):
        plan_capacity(DENSE, 99)


@given(sizes=any_sizes(), budget=st.integers(0, 10**8), more=st.integers(0, 10**6))
def test_slots_grow_with_the_budget_and_stay_within_it_when_it_works(sizes: ModelSizes, budget: int, more: int) -> None:
    budget = max(budget, sizes.least_budget)
    small, large = plan_capacity(sizes, budget), plan_capacity(sizes, budget + more)
    assert small.num_slots <= large.num_slots
    assert small.num_in_use <= large.num_in_use
    for found in (small, large):
        assert sum(found.holdings.values()) <= found.budget
        assert sizes.experts_per_token <= found.num_in_use <= found.num_slots <= sizes.num_pages
        # Nothing is left that would hold another page.
        assert found.num_in_use == sizes.num_pages or found.budget - sum(found.holdings.values()) < sizes.page_bytes


@given(sizes=any_sizes())
def test_smallest_budget_works_when_not_one_byte_is_taken_from_it(sizes: ModelSizes) -> None:
    assert plan_capacity(sizes, sizes.least_budget).num_in_use == sizes.experts_per_token
    with pytest.raises(MemoryBudgetError, match="too small") as caught:
        plan_capacity(sizes, sizes.least_budget - 1)
    told = re.fullmatch(r"give (\d+)MiB or more", caught.value.hint)
    assert told is not None
    assert plan_capacity(sizes, int(told[1]) * 2**20).num_in_use >= sizes.experts_per_token


@given(sizes=any_sizes(), num_slots=st.integers(0, 72))
def test_budget_for_slots_is_the_least_one_when_asked_for(sizes: ModelSizes, num_slots: int) -> None:
    num_slots = min(max(num_slots, sizes.experts_per_token), sizes.num_pages)
    assert plan_capacity(sizes, sizes.budget_for(num_slots)).num_in_use == num_slots


def test_every_page_has_a_slot_when_there_is_no_limit() -> None:
    assert count_slots(None, {"process": 10**12}, 10, 7, 2) == 7


def test_refusal_tells_what_is_taken_when_a_budget_is_too_small() -> None:
    with pytest.raises(MemoryBudgetError) as caught:
        count_slots(2**20, {"process": 2**20, "dense core": 2**21}, 2**18, 64, 8)
    text = "a budget of 1 MiB is too small: process 1 MiB, dense core 2 MiB, 8 expert pages of 256 KiB"
    assert (caught.value.text, caught.value.hint) == (text, "give 5MiB or more")


def test_token_reads_what_is_worked_out_when_hits_are_given() -> None:
    assert (SIZES.memory_bytes_per_token, SIZES.disk_bytes_per_token) == (60, 20)
    # 0.6 s of memory; 2 s of disk if nothing hits, 0.5 s if three of four do.
    assert expect_decode_rate(SIZES, RATES, 0.0) == pytest.approx((1 / 2.6, 1 / 2))
    assert expect_decode_rate(SIZES, RATES, 0.75) == pytest.approx((1 / 1.1, 1 / 0.6))
    assert expect_decode_rate(SIZES, RATES, 1.0) == pytest.approx((1 / 0.6, 1 / 0.6))


def test_prompt_takes_the_longer_of_both_when_computing_and_reading_overlap() -> None:
    # Three tokens touch 1 - (1/2)**3 of each layer: 7/8 of 8 pages of 5 bytes take 3.5 s; 600 operations take 3 s.
    assert expect_prompt_seconds(SIZES, RATES, 0) == pytest.approx(3.5)
    assert expect_prompt_seconds(SIZES, RATES, 4) == pytest.approx(3.0)


@given(sizes=any_sizes(), low=st.floats(0, 1), high=st.floats(0, 1))
def test_speed_falls_never_when_more_is_resident(sizes: ModelSizes, low: float, high: float) -> None:
    low, high = sorted((low, high))
    for few, many in zip(*(expect_decode_rate(sizes, RATES, each) for each in (low, high)), strict=True):
        assert few <= many
    taking_turns, overlapped = expect_decode_rate(sizes, RATES, low)
    assert taking_turns <= overlapped <= 2 * taking_turns * (1 + 1e-9)
    pages = [math.floor(share * sizes.num_pages) for share in (low, high)]
    assert expect_prompt_seconds(sizes, RATES, pages[0]) >= expect_prompt_seconds(sizes, RATES, pages[1])
    assert 0 <= expect_traced_hits(low) <= expect_traced_hits(high) <= 1


def test_traced_hits_are_those_of_the_table_when_the_share_stands_in_it() -> None:
    lines = (line.strip("| ").split(" | ") for line in str(policy.__doc__).splitlines() if line.startswith("|"))
    rows = {
        name: [float(cell) for cell in cells] for name, *cells in lines if name in ("pages", "decayed") and cells[1:]
    }
    assert [64 * share for share, _ in TRACED[1:-1]] == rows["pages"]
    assert [100 * hits for _, hits in TRACED[1:-1]] == pytest.approx(rows["decayed"])
    assert [expect_traced_hits(share) for share, _ in TRACED] == pytest.approx([hits for _, hits in TRACED])
    assert expect_traced_hits(0.625) == pytest.approx((0.822 + 0.938) / 2)
