"""Pages that come to a device through host slots: host memory stands for the device, on the same path."""

import queue
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moesaic.errors import CheckpointError
from moesaic.memory.copy_stream import HostCopyStream
from moesaic.memory.device_pool import DevicePool
from moesaic.memory.disk import Disk, Reading
from moesaic.memory.file import WeightsFile
from moesaic.memory.host_tier import HostTier
from moesaic.memory.page import Page
from moesaic.memory.pager import PageError, Pager
from moesaic.memory.pool import Pool
from tests.memory.made import LAYOUT, holds, write_pages

NUM_LAYERS, NUM_EXPERTS, EXPERTS_PER_TOKEN = 3, 6, 2
DEVICE = torch.device("cpu")
KEYS = [(layer, expert) for layer in range(NUM_LAYERS) for expert in range(NUM_EXPERTS)]
LONG = 20.0  # seconds that nothing takes, unless it hangs


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Page]]:
    """A small model's pages on disk."""
    return write_pages(tmp_path_factory.mktemp("pages"), NUM_LAYERS, NUM_EXPERTS)


class Faults:
    """Pages that cannot be read, and pages that cannot be copied, just now."""

    def __init__(self, pages: dict[int, list[Page]]) -> None:
        self._pages = pages
        self.read: set[tuple[str, int]] = set()
        self.copied: set[tuple[int, int]] = set()
        self._real_read, self._real_begin = WeightsFile.read, HostCopyStream.begin

    def set(self, unread: set[tuple[int, int]], uncopied: set[tuple[int, int]] = frozenset()) -> None:  # type: ignore[assignment]
        """Let these pages fail, each as a whole."""
        extents = [self._pages[layer][expert][0].extent for layer, expert in unread]
        self.read = {(extent.file.name, extent.offset) for extent in extents}
        self.copied = uncopied

    def __enter__(self) -> "Faults":
        def read(file: WeightsFile, offset: int, *rest: Any) -> None:
            if (file.path.name, offset) in self.read:
                raise CheckpointError(f"cannot read '{file.path}' at byte {offset}: injected", "none")
            self._real_read(file, offset, *rest)

        def begin(stream: HostCopyStream, source: np.ndarray, target: torch.Tensor, after: None) -> Callable[[], None]:
            if any(holds(source, *key) for key in self.copied):
                raise ArithmeticError("the device has fallen off the bus")
            return self._real_begin(stream, source, target, after)

        WeightsFile.read, HostCopyStream.begin = read, begin  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        WeightsFile.read, HostCopyStream.begin = self._real_read, self._real_begin  # type: ignore[method-assign]


def _new_tier(num_host_slots: int) -> HostTier:
    return HostTier(Disk(cached=True, num_threads=2), Pool(LAYOUT, num_host_slots), DEVICE)


def _new_pager(
    pages: dict[int, list[Page]], num_slots: int, num_host_slots: int, policy: str = "decayed"
) -> tuple[Pager, HostTier]:
    tier = _new_tier(num_host_slots)
    return Pager(pages, EXPERTS_PER_TOKEN, DevicePool(LAYOUT, num_slots, DEVICE), tier, policy), tier


def _compute(pager: Pager, layer: int, experts: list[int]) -> list[list[int]]:
    """Draw all waves of a layer, look at every record; return the experts of each wave."""
    waves = []
    for places_E in pager.waves(layer, experts, [experts]):
        wave = [expert for expert, place in enumerate(places_E.tolist()) if place >= 0]
        for expert in wave:
            assert holds(pager.pool.record(int(places_E[expert])).numpy(), layer, expert)
        waves.append([expert for expert in wave if expert in experts])
    assert sorted(expert for wave in waves for expert in wave) == sorted(experts), "each once"
    return waves


def _check_device_slots(pager: Pager) -> None:
    cache = pager._cache
    resident = [slot for layer in range(NUM_LAYERS) for slot in cache.slots_of(layer).values()]
    assert sorted([*cache._free, *cache._loading.values(), *resident]) == list(range(pager.pool.num_slots))


def _check_host_slots(tier: HostTier, pages: dict[int, list[Page]]) -> None:
    """Every host slot is free, or held by a page whose bytes it has, once nothing is on its way."""
    assert not tier._busy
    assert not tier._waiting
    assert sorted([*tier._free, *tier._held.values()]) == list(range(tier._pool.num_slots))
    for layer, expert in KEYS:
        slot = tier._held.get(pages[layer][expert])
        assert slot is None or holds(tier._pool.record(slot), layer, expert)


def _hold_copies(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let no copy begin before this has been set."""
    may_copy, real = threading.Event(), HostCopyStream.begin

    def begin(*arguments: Any) -> Callable[[], None]:
        assert may_copy.wait(LONG)
        return real(*arguments)

    monkeypatch.setattr(HostCopyStream, "begin", begin)
    return may_copy


class TierMachine(RuleBasedStateMachine):
    """Anything is asked for at any time, into any record that is not on its way; some of it fails."""

    folder = tempfile.TemporaryDirectory()
    pages = write_pages(Path(folder.name), NUM_LAYERS, NUM_EXPERTS)

    def __init__(self) -> None:
        super().__init__()
        self.faults = Faults(self.pages)
        self.faults.__enter__()
        self.tier: HostTier | None = None
        self.device = DevicePool(LAYOUT, len(KEYS), DEVICE)
        self.coming: dict[tuple[int, int], tuple[Reading, int, threading.Event]] = {}
        self.slots = list(range(len(KEYS)))
        self.num_asked = 0

    @precondition(lambda self: self.tier is None)
    @rule(num_slots=st.integers(1, len(KEYS)))
    def open(self, num_slots: int) -> None:
        """Begin with so many host slots."""
        self.tier = _new_tier(num_slots)

    @precondition(lambda self: self.tier is not None)
    @rule(key=st.sampled_from(KEYS), urgent=st.booleans())
    def ask(self, key: tuple[int, int], urgent: bool) -> None:
        """Ask for a page, if it is not on its way."""
        assert self.tier is not None
        if key in self.coming:
            return
        slot, page = self.slots.pop(0), self.pages[key[0]][key[1]]
        self.num_asked += 1
        ended = threading.Event()
        reading = self.tier.read(page, self.device.record(slot), ended.set, urgent)
        self.coming[key] = reading, slot, ended

    @precondition(lambda self: bool(self.coming))
    @rule()
    def take_one(self) -> None:
        """Take what was asked for first, arrived or failed; look whether it is the right page.

        Not what arrived first: the rules that follow would depend on the threads.
        """
        key = next(iter(self.coming))
        reading, slot, ended = self.coming.pop(key)
        assert ended.wait(LONG)
        if reading.failure is None:
            assert holds(self.device.record(slot).numpy(), *key)
        else:
            assert isinstance(reading.failure, CheckpointError | ArithmeticError)
        self.device.record(slot).zero_()
        self.slots.append(slot)

    @precondition(lambda self: self.tier is not None and not self.coming)
    @rule(unread=st.sets(st.sampled_from(KEYS), max_size=3), uncopied=st.sets(st.sampled_from(KEYS), max_size=3))
    def break_some(self, unread: set[tuple[int, int]], uncopied: set[tuple[int, int]]) -> None:
        """Let other pages fail from now on."""
        self.faults.set(unread, uncopied)

    @invariant()
    def no_slot_is_lost(self) -> None:
        """Look at the host slots when nothing is on its way, and count what was asked."""
        if self.tier is None:
            return
        assert self.tier.hits + self.tier.misses == self.num_asked
        if not self.coming:
            _check_host_slots(self.tier, self.pages)

    def teardown(self) -> None:
        """Let all come to an end."""
        while self.coming:
            self.take_one()
        self.no_slot_is_lost()
        if self.tier is not None:
            self.tier.close()
        self.faults.__exit__()


TestTier = TierMachine.TestCase
TestTier.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

EXPERTS = st.lists(st.integers(0, NUM_EXPERTS - 1), min_size=1, max_size=NUM_EXPERTS, unique=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_wave_holds_the_right_bytes_when_pages_come_through_host_slots(
    pages: dict[int, list[Page]], data: st.DataObject
) -> None:
    num_slots = data.draw(st.integers(EXPERTS_PER_TOKEN, len(KEYS)), label="slots")
    pager, tier = _new_pager(pages, num_slots, data.draw(st.integers(1, len(KEYS)), label="host slots"))
    try:
        for _ in range(data.draw(st.integers(1, 6), label="steps")):
            pager.begin_step(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3), label="lengths"))
            for layer in range(NUM_LAYERS):
                _compute(pager, layer, data.draw(EXPERTS, label=f"layer {layer}"))
                _check_device_slots(pager)
            pager.end_step()
        while not pager._loader.is_idle:
            pager._collect(True, set())
        _check_host_slots(tier, pages)
    finally:
        tier.close()


@pytest.mark.parametrize("num_host_slots", [1, 3, 9])
def test_no_slot_of_either_tier_is_lost_when_pages_fail_in_many_requests(
    pages: dict[int, list[Page]], num_host_slots: int
) -> None:
    generator = torch.Generator().manual_seed(7)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    pager, tier = _new_pager(pages, 7, num_host_slots)
    failed = passed = wrong = 0
    with Faults(pages) as faults:
        for _ in range(600):
            bad = {KEYS[draw(len(KEYS))] for _ in range(draw(4))}
            faults.set(bad)
            pager.begin_step([1 + draw(2) * 20])
            try:
                for layer in range(NUM_LAYERS):
                    _compute(pager, layer, sorted({draw(NUM_EXPERTS) for _ in range(1 + draw(NUM_EXPERTS))}))
                pager.end_step()
                passed += 1
            except PageError as caught:
                wrong += (caught.layer, caught.expert) not in bad or ": cannot read" not in caught.text
                failed += 1
            _check_device_slots(pager)
        while not pager._loader.is_idle:
            pager._collect(True, set())
    _check_host_slots(tier, pages)
    assert wrong == 0
    assert failed > 60
    assert passed > 60
    tier.close()


def test_failure_of_the_device_is_raised_as_it_is_when_copying(pages: dict[int, list[Page]]) -> None:
    pager, tier = _new_pager(pages, 4, 4)
    with Faults(pages) as faults:
        faults.set(set(), {(0, 1)})
        pager.begin_step([1])
        with pytest.raises(ArithmeticError, match="off the bus"):
            _compute(pager, 0, [1])
    _compute(pager, 0, [1])
    assert (tier.hits, tier.misses) == (1, 1), "the host had read it"
    tier.close()


def test_failure_is_told_when_a_copy_ends_badly(pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostCopyStream, "begin", lambda *_: lambda: 1 // 0)
    tier = _new_tier(1)
    with pytest.raises(ZeroDivisionError):
        tier.read(pages[0][0], DevicePool(LAYOUT, 1, DEVICE).record(0)).wait()
    _check_host_slots(tier, pages)
    assert (tier.bytes_copied, tier.bytes_read) == (0, 0)
    tier.close()


def test_file_is_not_read_again_when_the_host_still_has_the_page(pages: dict[int, list[Page]]) -> None:
    tier, device = _new_tier(2), DevicePool(LAYOUT, 3, DEVICE)

    def bring(expert: int) -> None:
        tier.read(pages[0][expert], device.record(expert)).wait()
        assert holds(device.record(expert).numpy(), 0, expert)

    bring(0)
    bring(1)
    once = tier._disk.bytes_read
    bring(0)
    assert (tier.hits, tier.misses, tier._disk.bytes_read) == (1, 2, once)
    assert tier.bytes_read == tier.bytes_copied * once // (2 * LAYOUT.num_bytes), (
        "what the device got, in bytes of files"
    )
    bring(2)  # in place of 1, which was copied longest ago
    bring(0)
    assert (tier.hits, tier.misses) == (2, 3)
    bring(1)
    assert (tier.hits, tier.misses) == (2, 4)
    assert tier.busy_seconds > 0
    tier.close()


def test_urgent_pages_come_first_when_they_wait_for_a_slot(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_copy = _hold_copies(monkeypatch)
    tier, device = _new_tier(1), DevicePool(LAYOUT, 4, DEVICE)
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()

    def ask(expert: int, urgent: bool) -> None:
        tier.read(pages[0][expert], device.record(expert), lambda: ended.put(expert), urgent)

    ask(0, False)
    ask(1, False)
    ask(2, False)
    ask(3, True)
    may_copy.set()
    assert [ended.get(timeout=LONG) for _ in range(4)] == [0, 3, 1, 2]
    tier.close()


def test_urgent_pages_are_copied_first_when_the_host_has_many(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_copy, real = threading.Event(), threading.Event(), HostCopyStream.begin

    def begin(*arguments: Any) -> Callable[[], None]:
        has_begun.set()
        assert may_copy.wait(LONG)
        return real(*arguments)

    tier, device = _new_tier(4), DevicePool(LAYOUT, 4, DEVICE)
    for expert in range(4):
        tier.read(pages[0][expert], device.record(expert)).wait()
    monkeypatch.setattr(HostCopyStream, "begin", begin)
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    for expert, urgent in enumerate([False, False, False, True]):
        tier.read(pages[0][expert], device.record(expert), partial(ended.put, expert), urgent)
        assert has_begun.wait(LONG), "the first is taken before the others are there"
    may_copy.set()
    assert [ended.get(timeout=LONG) for _ in range(4)] == [0, 3, 1, 2]
    assert tier.hits == 4
    tier.close()


def test_later_page_is_copied_while_an_earlier_wave_is_computed(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace: list[str] = []
    may_copy, has_begun, real = threading.Event(), threading.Event(), HostCopyStream.begin

    def begin(stream: HostCopyStream, source: np.ndarray, *rest: Any) -> Callable[[], None]:
        if holds(source, 0, 5):
            assert may_copy.wait(LONG), "the first wave does not wait for this page"
            trace.append("copy of 5 begins")
            has_begun.set()
        return real(stream, source, *rest)

    pager, tier = _new_pager(pages, 4, 4)
    pager.begin_step([1])
    _compute(pager, 0, [0, 1])
    monkeypatch.setattr(HostCopyStream, "begin", begin)
    pager.begin_step([1])
    for places_E in pager.waves(0, [0, 1, 5], []):
        wave = [expert for expert, place in enumerate(places_E.tolist()) if place >= 0]
        trace.append(f"computing {wave} begins")
        may_copy.set()
        assert has_begun.wait(LONG), "computing would wait for ever for a copy that waits for it"
        trace.append(f"computing {wave} ends")
    assert trace == [
        "computing [0, 1] begins",
        "copy of 5 begins",
        "computing [0, 1] ends",
        "computing [5] begins",
        "computing [5] ends",
    ]
    tier.close()


def test_what_waits_never_comes_and_memory_is_given_back_when_the_tier_is_closed(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_copy = _hold_copies(monkeypatch)
    tier, device = _new_tier(1), DevicePool(LAYOUT, 2, DEVICE)
    ended: list[int] = []
    first = tier.read(pages[0][0], device.record(0), lambda: ended.append(0))
    tier.read(pages[0][1], device.record(1), lambda: ended.append(1))
    closing = threading.Thread(target=tier.close)
    closing.start()
    while tier._waiting:
        pass
    may_copy.set()
    closing.join(LONG)
    assert not closing.is_alive()
    first.wait()
    assert ended == [0]
    assert not tier._pool.memory.any(), "given back"
    tier.close()
    with pytest.raises(AssertionError, match="a closed tier"):
        tier.read(pages[0][0], device.record(0))
