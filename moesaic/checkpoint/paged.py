"""Opening a checkpoint within a memory budget: the dense core is loaded, experts stay pages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moesaic.checkpoint.budget import DENSE, choose_budget, choose_device_budget, list_fixed
from moesaic.checkpoint.lay_out import count_dense_bytes, lay_out_pages
from moesaic.checkpoint.load import choose_dtype, read_parameters
from moesaic.checkpoint.stored import StoredModel, open_model
from moesaic.errors import MemoryBudgetError
from moesaic.hw.device import find_device
from moesaic.memory.device_pool import DevicePool
from moesaic.memory.disk import Disk
from moesaic.memory.host_tier import HostTier
from moesaic.memory.ledger import Ledger
from moesaic.memory.page import Page, PageLayout
from moesaic.memory.pager import Pager
from moesaic.memory.plan import count_slots
from moesaic.memory.pool import Pool
from moesaic.memory.room import PAGES, Room
from moesaic.memory.source import Slots, Source
from moesaic.models.model import LanguageModel
from moesaic.nn.attention import SelfAttention
from moesaic.nn.moe.paged import PagedDispatcher

# Host slots where every page passes once, to the device.
_MOST_PASSING = 8
# A device's slots do not give way to requests: they leave room for prompts and answers of so many tokens in all, and
# for activations of so many bytes beside.
_REQUEST_TOKENS = 4096
_REQUEST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PagedModel:
    """A model whose experts are pages.

    Attributes:
        model: in evaluation mode; the parameters of its experts hold nothing.
        pager: of its experts; None: it has none.
        ledger: what it takes of the host.
        disk: where its pages come from.
        device_ledger: what it takes of the device; None: the host computes.
        tier: host slots, through which pages come to the device; None: likewise, or it has no experts.
    """

    model: LanguageModel
    pager: Pager | None
    ledger: Ledger
    disk: Disk
    device_ledger: Ledger | None = None
    tier: HostTier | None = None

    def make_room(self) -> Room:
        """Return where requests take their memory: from expert pages if need be, which on a device do not give way."""
        return Room(self.ledger, self.pager) if self.device_ledger is None else Room(self.device_ledger, None)

    def close(self) -> None:
        """End the threads that read and copy, and close the files."""
        if self.tier is not None:
            self.tier.close()
        self.disk.close()

    def stats(self) -> dict[str, Any]:
        """Return counts of what went on, and the memory that is held."""
        pages = {} if self.pager is None else self.pager.stats()
        stats = {**pages, "bytes_read": self.disk.bytes_read, **_tell(self.ledger, "")}
        if self.tier is not None:
            stats |= {
                "host_hits": self.tier.hits,
                "host_misses": self.tier.misses,
                "bytes_copied": self.tier.bytes_copied,
            }
        return stats if self.device_ledger is None else stats | _tell(self.device_ledger, "device_")


def _tell(ledger: Ledger, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}budget_bytes": ledger.budget,
        f"{prefix}held_bytes": ledger.held,
        f"{prefix}most_bytes": ledger.most,
        f"{prefix}holdings_bytes": ledger.holdings,
    }


def open_paged_model(
    folder: Path,
    dtype: str | None,
    budget: int | None,
    policy: str = "decayed",
    on_progress: Callable[[int, int], None] | None = None,
    device: str | None = None,
    device_budget: int | None = None,
) -> PagedModel:
    """Load the dense core, and make room for as many expert pages as the budget leaves.

    Args:
        folder: of `find_model`.
        dtype: as for `load_model`.
        budget: bytes that the process may hold in all, less where `limit_bytes` is less; None: four fifths of what is
            free, where the whole model takes more, else no limit.
        policy: which page leaves a full pool.
        on_progress: where every page has a slot, told how many of how many are there.
        device: that computes, and has the dense core and slots of its own, to which pages come through those of the
            host. None: the host computes. 'cpu' stands in for a device, in host memory that the budget leaves out.
        device_budget: bytes that model and requests may hold there; None: four fifths of what is free on CUDA.

    Raises:
        MemoryBudgetError: a budget is too small; the hint names the smallest that works.
        CheckpointError, UnsupportedError, ConfigError: as `load_model`, and as `find_device`.
    """
    place = None if device is None else find_device(device)
    asked = choose_dtype(dtype)
    stored = open_model(folder)
    kept = asked or stored.dtype
    layout, pages = lay_out_pages(stored, kept)
    dense_bytes = count_dense_bytes(stored, kept)
    budget = choose_budget(budget, dense_bytes + sum(len(each) for each in pages.values()) * layout.num_bytes)
    disk = Disk(cached=budget is None)
    opened = _Opened(stored, kept, layout, pages, dense_bytes, disk, policy)
    try:
        if place is None:
            paged = _open_on_host(opened, budget)
        else:
            paged = _open_on_device(opened, budget, place, choose_device_budget(place, device_budget))
        try:
            _load_all(paged, on_progress)
        except BaseException:
            paged.close()
            raise
    except BaseException:
        disk.close()
        raise
    return paged


@dataclass(frozen=True)
class _Opened:
    """A stored model that is about to be loaded.

    Attributes:
        stored, kept, layout, pages: as `lay_out_pages` takes and gives them.
        dense_bytes: of its dense core.
        disk: to read it.
        policy: which page leaves.
    """

    stored: StoredModel
    kept: torch.dtype
    layout: PageLayout
    pages: dict[int, list[Page]]
    dense_bytes: int
    disk: Disk
    policy: str

    @property
    def num_pages(self) -> int:
        """Return how many pages there are."""
        return sum(len(each) for each in self.pages.values())

    def count_slots(self, budget: int | None, taken: Mapping[str, int]) -> int:
        """Return how many pages a budget has room for, beside what is taken."""
        per_token = self.stored.model.config.experts_per_token
        return count_slots(budget, taken, self.layout.num_bytes, self.num_pages, per_token)

    def load_dense(self, device: torch.device | None) -> LanguageModel:
        """Read the dense core, to a device if one is named."""
        weights = read_parameters(self.stored, self.stored.dense_names, self.kept, self.disk)
        if device is not None:
            for name in weights:  # one by one: what is there is freed here
                weights[name] = weights[name].to(device)
        model = self.stored.model
        model.load_state_dict(weights, assign=True, strict=False)
        del weights
        for module in model.modules():
            if isinstance(module, SelfAttention):
                module.join_projections()
        return model

    def page(self, model: LanguageModel, slots: Slots[Any], source: Source[Any]) -> Pager:
        """Let the experts of a model be pages in these slots."""
        pager = Pager(self.pages, model.config.experts_per_token, slots, source, self.policy)
        _dispatch(model, pager)
        return pager


def _open_on_host(opened: _Opened, budget: int | None) -> PagedModel:
    ledger = Ledger(budget)
    fixed = list_fixed(opened.dense_bytes)
    num_slots = opened.count_slots(budget, fixed)
    for purpose, num_bytes in fixed.items():
        ledger.reserve(purpose, num_bytes)
    model = opened.load_dense(None)
    pager = None
    if opened.pages:
        ledger.reserve(PAGES, num_slots * opened.layout.num_bytes)
        pager = opened.page(model, Pool(opened.layout, num_slots), opened.disk)
    return PagedModel(model.eval().requires_grad_(False), pager, ledger, opened.disk)


def _open_on_device(opened: _Opened, budget: int | None, device: torch.device, device_budget: int | None) -> PagedModel:
    ledger, device_ledger = Ledger(budget), Ledger(device_budget, "--device-memory")
    page_bytes = opened.layout.num_bytes
    num_slots = _count_device_slots(opened, device, device_budget)
    fixed = list_fixed(opened.dense_bytes)
    dense_bytes = fixed.pop(DENSE)
    num_host_slots = opened.count_slots(budget, fixed)
    if num_slots == opened.num_pages:  # each passes once
        num_host_slots = min(num_host_slots, _MOST_PASSING)
    for purpose, num_bytes in fixed.items():
        ledger.reserve(purpose, num_bytes)
    ledger.reserve(DENSE, dense_bytes)  # on its way
    device_ledger.reserve(DENSE, dense_bytes)
    model = opened.load_dense(device)
    ledger.release(DENSE, dense_bytes)
    pager = tier = None
    if opened.pages:
        ledger.reserve(PAGES, num_host_slots * page_bytes)
        device_ledger.reserve(PAGES, num_slots * page_bytes)
        tier = HostTier(opened.disk, Pool(opened.layout, num_host_slots), device)
        try:
            pager = opened.page(model, DevicePool(opened.layout, num_slots, device), tier)
        except BaseException:
            tier.close()
            raise
    return PagedModel(model.eval().requires_grad_(False), pager, ledger, opened.disk, device_ledger, tier)


def _count_device_slots(opened: _Opened, device: torch.device, budget: int | None) -> int:
    """Return how many pages a device has room for, beside the dense core and a request of some length."""
    config = opened.stored.model.config
    tokens = min(config.max_position_embeddings, _REQUEST_TOKENS)
    vectors = 2 * config.num_hidden_layers * config.kv_heads * config.head_channels
    # Twice: a cache that grows is there before and after. As much again for activations.
    request_bytes = 3 * tokens * vectors * opened.kept.itemsize + _REQUEST_BYTES
    try:
        return opened.count_slots(budget, {DENSE: opened.dense_bytes, "a request": request_bytes})
    except MemoryBudgetError as failure:
        raise MemoryBudgetError(f"on {device}, {failure.text}", f"--device-memory: {failure.hint}") from None


def _load_all(paged: PagedModel, on_progress: Callable[[int, int], None] | None) -> None:
    """Bring every page where there is a slot for each; end what brings them where nothing is ever brought again."""
    pager = paged.pager
    is_whole = pager is None or pager.pool.num_slots == pager.num_pages
    if pager is not None and is_whole:
        for count in pager.load_all():
            if on_progress is not None:
                on_progress(count, pager.num_pages)
    if is_whole and (paged.ledger.budget is None or paged.device_ledger is not None):
        paged.close()
        if paged.tier is not None:
            paged.ledger.release(PAGES, paged.ledger.holdings[PAGES])


def _dispatch(model: LanguageModel, pager: Pager) -> None:
    """Let every mixture take its experts from a pager, and tell nothing that generating has no use for."""
    mixtures = list(model.moe_layers().items())
    following = [None if model.config.pregated else (layer, moe.router) for layer, moe in mixtures[1:]]
    for (layer, moe), next_one in zip(mixtures, [*following, None], strict=True):
        moe.dispatcher = PagedDispatcher(pager, layer, next_one)
        moe.observed = False
        if moe.router.weight.dtype.itemsize < 4:  # it computes in float32: widened once instead of for each token
            moe.router.weight = nn.Parameter(moe.router.weight.float(), requires_grad=False)
