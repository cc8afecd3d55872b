"""What generating takes and gives within a budget, told before any weight is loaded."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moesaic.checkpoint.budget import DENSE, choose_budget, list_fixed
from moesaic.checkpoint.folder import find_model
from moesaic.checkpoint.lay_out import count_dense_bytes, lay_out_pages
from moesaic.checkpoint.load import choose_dtype
from moesaic.checkpoint.stored import StoredModel, open_model
from moesaic.errors import RequestError
from moesaic.hw.arithmetic import measure_arithmetic_rate
from moesaic.hw.memory import available_bytes
from moesaic.infer.activations import activation_bytes
from moesaic.memory.disk import Disk
from moesaic.memory.page import Page, PageLayout, stored_bytes
from moesaic.memory.plan import (
    Capacity,
    ModelSizes,
    Rates,
    expect_decode_rate,
    expect_prompt_seconds,
    expect_traced_hits,
    plan_capacity,
)
from moesaic.memory.probe import measure_disk_rate
from moesaic.ops.cpu.bandwidth import BUFFER_BYTES, read_bandwidth

# Of a prompt, where nobody says how long it is.
_PROMPT_TOKENS = 512
# Of an answer, for which keys and values are reckoned; they grow with a longer one.
ANSWER_TOKENS = 256
# Of all experts, beside the smallest budget and the one that is asked for.
_SHARES = (0.25, 0.5, 0.75, 1.0)


def plan_inference(
    name: str | Path,
    dtype: str | None = None,
    budget: int | None = None,
    prompt_tokens: int | None = None,
    stated: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Tell what a budget has room for and what speed can be expected of it, beside other budgets.

    Args:
        name: as for `load_model`.
        dtype: as for `load_model`.
        budget: bytes; None: as `LLM` chooses.
        prompt_tokens: of the prompt that is answered; None: 512, or as many as the model reads.
        stated: rates, by the names of `Rates`, that are not to be measured.

    Returns:
        Plain data, bytes and seconds. Under 'plan', and under 'budgets' in a list of such: `Capacity`, and under
        'even' and 'traced' the hit rate of even routing and of `expect_traced_hits` with [least, most] tokens a second.

    Raises:
        MemoryBudgetError: the budget has no room for such a prompt; the hint names the smallest that works.
        RequestError: the model does not read such a prompt.
        MoesaicError: as `open_model`.
    """
    given = stated or {}
    stored = open_model(find_model(name))
    kept = choose_dtype(dtype) or stored.dtype
    prompt_tokens = _choose_prompt(prompt_tokens, stored.model.config.max_position_embeddings)
    layout, pages = lay_out_pages(stored, kept)
    sizes = size_model(stored, kept, prompt_tokens)
    whole = sizes.budget_for(sizes.num_pages)
    # What is asked for may be another machine's.
    chosen = budget or choose_budget(None, sizes.fixed[DENSE] + sizes.num_pages * sizes.page_bytes) or whole
    capacity = plan_capacity(sizes, chosen)  # refused before anything is measured
    rates = _measure(given, kept, lambda: _measure_disk(pages, layout))
    budgets = {sizes.least_budget, *(sizes.budget_for(math.ceil(share * sizes.num_pages)) for share in _SHARES)}
    return {
        "model": str(stored.tensors.folder),
        "family": stored.model.config.model_type,
        "dtype": str(kept).removeprefix("torch."),
        "smallest_budget_bytes": sizes.least_budget,
        "whole_budget_bytes": whole,
        "budget_is_given": budget is not None,
        "answer_tokens": ANSWER_TOKENS,
        **{key: value for key, value in asdict(sizes).items() if key not in ("fixed", "request")},
        "num_pages": sizes.num_pages,
        "memory_bytes_per_token": sizes.memory_bytes_per_token,
        "disk_bytes_per_token": sizes.disk_bytes_per_token,
        "rates": {key: value if math.isfinite(value) else None for key, value in asdict(rates).items()},
        "rates_measured": [key for key, value in asdict(rates).items() if key not in given and math.isfinite(value)],
        "rates_stated": list(given),
        "plan": _expect(sizes, rates, capacity),
        "budgets": [_expect(sizes, rates, plan_capacity(sizes, each)) for each in sorted(budgets)],
    }


def budget_for_weights(folder: Path, weight_bytes: int, dtype: str | None = None) -> int:
    """Return the budget within which the weights in memory, dense core and pages, take about so many bytes.

    The dense core and the experts of one token are there in any case.

    Args:
        folder: of `find_model`.
        weight_bytes: of all weights in memory.
        dtype: as for `load_model`.
    """
    stored = open_model(folder)
    sizes = size_model(stored, choose_dtype(dtype) or stored.dtype, 1)
    most = max(0, weight_bytes - sizes.fixed[DENSE]) // max(1, sizes.page_bytes)
    return sizes.budget_for(min(sizes.num_pages, max(sizes.experts_per_token, most)))


def size_model(stored: StoredModel, kept: torch.dtype, prompt_tokens: int) -> ModelSizes:
    """Return what a stored model asks for, with weights of dtype `kept`, and what a prompt of so many tokens does."""
    config, model = stored.model.config, stored.model
    layout, pages = lay_out_pages(stored, kept)
    fixed = list_fixed(count_dense_bytes(stored, kept))
    table = model.decoder.embedding.weight.numel()
    tokens = min(prompt_tokens + ANSWER_TOKENS, config.max_position_embeddings)
    vectors = 2 * config.num_hidden_layers * config.kv_heads * config.head_channels
    # The table is looked up, and only the last token of a prompt goes through the head.
    active = model.num_parameters()[1] - table - (0 if model.head is None else table)
    return ModelSizes(
        fixed=fixed,
        request={
            "keys and values": tokens * vectors * kept.itemsize,
            "activations": activation_bytes(config, 1, prompt_tokens, kept.itemsize),
        },
        page_bytes=layout.num_bytes,
        stored_page_bytes=stored_bytes(next(iter(pages.values()))[0]) if pages else 0,
        num_layers=len(pages),
        num_experts=config.num_experts if pages else 0,
        experts_per_token=config.experts_per_token if pages else 0,
        dense_read_bytes=fixed[DENSE] - (0 if model.head is None else table * kept.itemsize),
        prompt_tokens=prompt_tokens,
        prompt_operations=2.0 * prompt_tokens * active,
    )


def _choose_prompt(prompt_tokens: int | None, context: int) -> int:
    if prompt_tokens is None:
        return max(1, min(_PROMPT_TOKENS, context - 1))
    if prompt_tokens >= context:
        raise RequestError(
            f"a prompt of {prompt_tokens} tokens is too long: the model reads {context}, its answer included",
            f"plan for {context - 1} tokens or fewer",
        )
    return prompt_tokens


def _measure_disk(pages: Mapping[int, Sequence[Page]], layout: PageLayout) -> float:
    if not pages:
        return math.inf
    disk = Disk()
    try:
        return measure_disk_rate([page for each in pages.values() for page in each], layout, disk)
    finally:
        disk.close()


def _measure(stated: Mapping[str, float], dtype: torch.dtype, measure_disk: Callable[[], float]) -> Rates:
    def measure_memory() -> float:
        return read_bandwidth(min(BUFFER_BYTES, available_bytes() // 4 // 512 * 512), repeats=2)

    return Rates(
        memory=stated["memory"] if "memory" in stated else measure_memory(),
        disk=stated["disk"] if "disk" in stated else measure_disk(),
        arithmetic=stated["arithmetic"] if "arithmetic" in stated else measure_arithmetic_rate(dtype),
    )


def _expect(sizes: ModelSizes, rates: Rates, capacity: Capacity) -> dict[str, Any]:
    hit_rates = {"even": capacity.share, "traced": expect_traced_hits(capacity.share)}
    # Where every page has a slot, all are read when the model is loaded.
    resident = capacity.num_in_use if capacity.num_slots == sizes.num_pages else 0
    return {
        **asdict(capacity),
        **{
            routing: {"hit_rate": hit_rate, "tokens_per_s": expect_decode_rate(sizes, rates, hit_rate)}
            for routing, hit_rate in hit_rates.items()
        },
        "first_prompt_seconds": expect_prompt_seconds(sizes, rates, resident),
        "later_prompt_seconds": expect_prompt_seconds(sizes, rates, capacity.num_in_use),
    }
