"""Opening a checkpoint within a memory budget: the dense core is loaded, experts stay pages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moesaic.checkpoint.load import choose_dtype, kept_dtype, read_parameters
from moesaic.checkpoint.page_index import lay_out_record
from moesaic.checkpoint.pieces import page_of
from moesaic.checkpoint.stored import StoredModel, open_model
from moesaic.errors import UnsupportedError
from moesaic.hw.memory import available_bytes, held_bytes, limit_bytes
from moesaic.memory.disk import DISK_BUFFERS_BYTES, Disk
from moesaic.memory.ledger import Ledger
from moesaic.memory.page import Page, PageLayout
from moesaic.memory.pager import Pager
from moesaic.memory.plan import count_slots
from moesaic.memory.pool import Pool
from moesaic.memory.room import PAGES
from moesaic.models.model import LanguageModel
from moesaic.nn.attention import SelfAttention
from moesaic.nn.linear import Linear
from moesaic.nn.moe.paged import PagedDispatcher
from moesaic.ops.quant import TOKEN_DTYPES

# What torch and the system's allocator come to hold beyond what is written down: threads' stacks and arenas, compiled
# products, tensors of a few tokens.
_GROWTH_BYTES = 128 * 2**20
# Of the memory that is free, when nobody says how much may be taken.
_SHARE = 0.8


@dataclass(frozen=True)
class PagedModel:
    """A model whose experts are pages.

    Attributes:
        model: in evaluation mode; the parameters of its experts hold nothing.
        pager: of its experts; None: it has none.
        ledger: what it takes.
        disk: where its pages come from.
    """

    model: LanguageModel
    pager: Pager | None
    ledger: Ledger
    disk: Disk

    def stats(self) -> dict[str, Any]:
        """Return counts of what went on, and the memory that is held."""
        pages = {} if self.pager is None else self.pager.stats()
        return {
            **pages,
            "bytes_read": self.disk.bytes_read,
            "budget_bytes": self.ledger.budget,
            "held_bytes": self.ledger.held,
            "most_bytes": self.ledger.most,
            "holdings_bytes": self.ledger.holdings,
        }


def open_paged_model(
    folder: Path,
    dtype: str | None,
    budget: int | None,
    policy: str = "decayed",
    on_progress: Callable[[int, int], None] | None = None,
) -> PagedModel:
    """Load the dense core, and make room for as many expert pages as the budget leaves.

    Args:
        folder: of `find_model`.
        dtype: as for `load_model`.
        budget: bytes that the process may hold in all, less where `limit_bytes` is less; None: four fifths of what is
            free, where the whole model takes more, else no limit.
        policy: which page leaves a full pool.
        on_progress: where every page has a slot, told how many of how many are there.

    Raises:
        MemoryBudgetError: the budget is too small; the hint names the smallest that works.
        CheckpointError, UnsupportedError, ConfigError: as `load_model`.
    """
    asked = choose_dtype(dtype)
    stored = open_model(folder)
    kept = asked or stored.dtype
    layout, pages = lay_out_pages(stored, kept)
    num_pages = sum(len(each) for each in pages.values())
    dense_bytes = count_dense_bytes(stored, kept)
    budget = choose_budget(budget, dense_bytes + num_pages * layout.num_bytes)
    ledger = Ledger(budget)
    disk = Disk(cached=budget is None)
    try:
        fixed = list_fixed(dense_bytes)
        num_slots = count_slots(budget, fixed, layout.num_bytes, num_pages, stored.model.config.experts_per_token)
        for purpose, num_bytes in fixed.items():
            ledger.reserve(purpose, num_bytes)
        weights = read_parameters(stored, stored.dense_names, kept, disk)
        model = stored.model
        model.load_state_dict(weights, assign=True, strict=False)
        del weights
        for module in model.modules():
            if isinstance(module, SelfAttention) and isinstance(module.query, Linear):
                module.join_projections()
        pager = None
        if pages:
            ledger.reserve(PAGES, num_slots * layout.num_bytes)
            pager = Pager(pages, model.config.experts_per_token, Pool(layout, num_slots), disk, policy)
            _dispatch(model, pager)
            if num_slots == num_pages:
                for count in pager.load_all():
                    if on_progress is not None:
                        on_progress(count, num_pages)
        if budget is None and num_slots == num_pages:
            disk.close()  # nothing is ever read again
    except BaseException:
        disk.close()
        raise
    return PagedModel(model.eval().requires_grad_(False), pager, ledger, disk)


def _dispatch(model: LanguageModel, pager: Pager) -> None:
    """Let every mixture take its experts from a pager, and tell nothing that generating has no use for."""
    mixtures = list(model.moe_layers().items())
    following = [None if model.config.pregated else (layer, moe.router) for layer, moe in mixtures[1:]]
    for (layer, moe), next_one in zip(mixtures, [*following, None], strict=True):
        moe.dispatcher = PagedDispatcher(pager, layer, next_one)
        moe.observed = False
        if moe.router.weight.dtype.itemsize < 4:  # it computes in float32: widened once instead of for each token
            moe.router.weight = nn.Parameter(moe.router.weight.float(), requires_grad=False)


def lay_out_pages(stored: StoredModel, kept: torch.dtype) -> tuple[PageLayout, dict[int, list[Page]]]:
    """Return the record of an expert with weights of dtype `kept`, and by MoE layer the page of each expert.

    Records of a repacked model are as they were written; where their weights are of a few bits, `kept` is the dtype of
    the dense core and of what is computed.

    Raises:
        UnsupportedError: the records of a repacked model do not go with this dtype.
    """
    if stored.repacked is not None:
        _check_dtype(stored, kept)
        return stored.repacked.index.layout, stored.repacked.pages
    state = stored.model.state_dict()
    layers = stored.model.moe_layers()
    if not layers:
        return PageLayout.of({}), {}
    prefixes = {layer: f"decoder.layers.{layer}.moe.experts." for layer in layers}
    layout = lay_out_record(next(iter(layers.values())).experts, None, kept)
    pages = {}
    for layer, prefix in prefixes.items():
        sources = {name: stored.sources[prefix + name] for name in layout.fields}
        num_experts = state[prefix + "down"].shape[0]
        pages[layer] = [page_of(expert, sources, layout, stored.tensors) for expert in range(num_experts)]
    return layout, pages


def choose_budget(asked: int | None, num_bytes: int) -> int | None:
    """Return what is asked for, or as much of it as the process may ever hold.

    Where nobody asks: most of what is free, if weights of so many bytes take more; else None, no limit.
    """
    if asked is not None:
        return min(asked, limit_bytes())
    most = int(_SHARE * available_bytes())
    return most if num_bytes > most else None


def list_fixed(dense_bytes: int) -> dict[str, int]:
    """Return the bytes that are held as long as a model is, whatever the budget, by purpose."""
    return {
        "process": held_bytes() + _GROWTH_BYTES,
        "dense core": dense_bytes,
        "buffers of the disk": DISK_BUFFERS_BYTES,
    }


def count_dense_bytes(stored: StoredModel, kept: torch.dtype) -> int:
    """Return the bytes of the dense core in memory, with weights of dtype `kept`."""
    state = stored.model.state_dict()
    return sum(state[name].numel() * kept_dtype(name, kept).itemsize for name in stored.dense_names)


def _check_dtype(stored: StoredModel, kept: torch.dtype) -> None:
    name, folder = str(kept).removeprefix("torch."), stored.tensors.folder
    if stored.bits is not None and kept not in TOKEN_DTYPES:
        raise UnsupportedError(
            f"'{folder}' has experts of {stored.bits} bits, which are not computed in {name}",
            "ask for bfloat16 or float32",
        )
    if stored.bits is None and kept != stored.dtype:
        held = str(stored.dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"'{folder}' has pages of {held}, read as they are; {name} was asked for",
            f"leave out the dtype, or write another folder: moesaic convert {folder} NEW --to moesaic --dtype {name}",
        )
