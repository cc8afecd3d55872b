"""Pages brought in waves: the right bytes at every budget, no slot ever lost, whatever fails meanwhile."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import CheckpointError
from moesaic.memory import guess as guess_room
from moesaic.memory import pager as pager_room
from moesaic.memory.disk import Disk
from moesaic.memory.file import WeightsFile
from moesaic.memory.guess import Guesses
from moesaic.memory.page import Page
from moesaic.memory.page_error import PageError
from moesaic.memory.pager import Pager
from moesaic.memory.policy import POLICIES
from moesaic.memory.pool import Pool
from tests.memory.made import LAYOUT, holds, write_pages

NUM_LAYERS, NUM_EXPERTS, EXPERTS_PER_TOKEN = 3, 6, 2


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Page]]:
    """A small model's pages on disk."""
    return write_pages(tmp_path_factory.mktemp("pages"), NUM_LAYERS, NUM_EXPERTS)


class Faults:
    """Places that the disk cannot read just now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bad: set[tuple[str, int]] = set()
        real = WeightsFile.read

        def read(file: WeightsFile, offset: int, *rest: object) -> None:
            if (file.path.name, offset) in self.bad:
                raise CheckpointError(f"cannot read '{file.path}' at byte {offset}: injected", "none")
            real(file, offset, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(WeightsFile, "read", read)

    def set(self, keys: set[tuple[int, int]], pages: dict[int, list[Page]]) -> None:
        """Let the first piece of these pages fail."""
        extents = [pages[layer][expert][0].extent for layer, expert in keys]
        self.bad = {(extent.file.name, extent.offset) for extent in extents}


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Faults that a test may set."""
    return Faults(monkeypatch)


def _new_pager(pages: dict[int, list[Page]], num_slots: int, policy: str = "decayed") -> tuple[Pager, Disk]:
    disk = Disk(cached=True, num_threads=2)
    return Pager(pages, EXPERTS_PER_TOKEN, Pool(LAYOUT, num_slots), disk, policy), disk


def _compute(pager: Pager, layer: int, experts: list[int]) -> list[list[int]]:
    """Draw all waves of a layer, look at every record; return the experts of each wave."""
    waves = []
    for places_E in pager.waves(layer, experts, [experts]):
        wave = [expert for expert, place in enumerate(places_E.tolist()) if place >= 0]
        for expert in wave:
            assert holds(pager.pool.record(int(places_E[expert])), layer, expert)
        waves.append([expert for expert in wave if expert in experts])
    assert sorted(expert for wave in waves for expert in wave) == sorted(experts), "each once"
    return waves


def _rest(pager: Pager) -> None:
    """Wait until nothing is on its way."""
    while not pager._loader.is_idle:
        pager._collect(True, set())


def _note_reads(pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the layer and expert of each page that is read from now on, in order, as it grows."""
    begun: list[tuple[int, int]] = []
    real = Disk.read

    def read(self: Disk, page: Page, *rest: object, **named: object) -> object:
        begun.append(next((layer, each.index(page)) for layer, each in pages.items() if page in each))
        return real(self, page, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Disk, "read", read)
    return begun


def _check_slots(pager: Pager) -> None:
    """Every slot is in one state, and each resident page in a slot of its own."""
    cache = pager._cache
    resident = [slot for layer in range(NUM_LAYERS) for slot in cache.slots_of(layer).values()]
    everything = [*cache._free, *cache._loading.values(), *resident, *cache._retired]
    assert sorted(everything) == list(range(pager.pool.num_slots))
    assert cache._pins == set(), "nothing stays pinned between layers"


EXPERTS = st.lists(st.integers(0, NUM_EXPERTS - 1), min_size=1, max_size=NUM_EXPERTS, unique=True)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_wave_holds_the_right_bytes_when_anything_is_asked_in_any_order(
    pages: dict[int, list[Page]], data: st.DataObject
) -> None:
    num_slots = data.draw(st.integers(EXPERTS_PER_TOKEN, NUM_LAYERS * NUM_EXPERTS), label="slots")
    pager, disk = _new_pager(pages, num_slots, data.draw(st.sampled_from(sorted(POLICIES))))
    lent = 0
    try:
        for _ in range(data.draw(st.integers(1, 6), label="steps")):
            lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3), label="lengths")
            pager.begin_step(lengths)
            for layer in range(NUM_LAYERS):
                _compute(pager, layer, data.draw(EXPERTS, label=f"layer {layer}"))
                _check_slots(pager)
            pager.end_step()
            if lent:
                pager.take_back(lent)
            lent = pager.lend(data.draw(st.integers(0, num_slots), label="lent"))
            assert pager._cache.num_slots == num_slots - lent >= EXPERTS_PER_TOKEN
            _check_slots(pager)
    finally:
        disk.close()


def test_no_slot_is_lost_when_pages_fail_in_thousands_of_requests(pages: dict[int, list[Page]], faults: Faults) -> None:
    generator = torch.Generator().manual_seed(7)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    pager, disk = _new_pager(pages, 7)
    keys = [(layer, expert) for layer in range(NUM_LAYERS) for expert in range(NUM_EXPERTS)]
    failed = passed = wrong = 0
    for _ in range(2000):
        bad = {keys[draw(len(keys))] for _ in range(draw(4))}
        faults.set(bad, pages)
        pager.begin_step([1 + draw(2) * 20])
        try:
            for layer in range(NUM_LAYERS):
                experts = sorted({draw(NUM_EXPERTS) for _ in range(1 + draw(NUM_EXPERTS))})
                _compute(pager, layer, experts)
            pager.end_step()
            passed += 1
        except PageError as caught:
            wrong += (caught.layer, caught.expert) not in bad or ": cannot read" not in caught.text
            failed += 1
        _check_slots(pager)
    assert wrong == 0
    assert failed > 200
    assert passed > 200
    faults.set(set(), pages)
    pager.begin_step([1])
    for layer in range(NUM_LAYERS):
        _compute(pager, layer, list(range(NUM_EXPERTS)))
    disk.close()


def test_slots_are_free_for_others_when_computing_fails(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, 4)
    pager.begin_step([1])
    waves = pager.waves(0, [0, 1, 2], [])
    next(waves)
    waves.close()
    _check_slots(pager)
    _compute(pager, 0, [3, 4, 5])
    disk.close()


def test_experts_in_memory_are_handed_out_before_those_that_are_read(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pager, disk = _new_pager(pages, 6)
    pager.begin_step([1])
    _compute(pager, 0, [0, 1])
    events: list[str] = []
    real_read = Disk.read

    def read(self: Disk, page: Page, *rest: object, **named: object) -> object:
        events.append(f"read {pages[0].index(page)}")
        return real_read(self, page, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Disk, "read", read)
    pager.begin_step([1])
    for places_E in pager.waves(0, [0, 1, 2], []):
        events.append(f"compute {[expert for expert, place in enumerate(places_E.tolist()) if place >= 0]}")
    assert events == ["read 2", "compute [0, 1]", "compute [2]"]
    assert (pager.stats()["hits"], pager.stats()["misses"]) == (2, 3)
    disk.close()


def test_coming_layers_are_read_before_anybody_asks_when_a_prompt_passes(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pager, disk = _new_pager(pages, 14)
    begun = _note_reads(pages, monkeypatch)
    mode = pager.begin_step([50])
    assert (mode.name, mode.num_passing) == ("ring", 3)
    assert sum(pager._cache._shares.values()) == 14 - 3
    assert begun == [(0, expert) for expert in range(4)], "as many as are read at once"
    everyone = list(range(NUM_EXPERTS))
    waves: Iterator[torch.Tensor] = pager.waves(0, everyone, [])
    next(waves)
    for _ in waves:
        pass
    assert (1, 0) in begun, "the next layer comes while this one computes"
    for layer in (1, 2):
        _compute(pager, layer, everyone)
    pager.end_step()
    assert len(begun) == len(set(begun)) == NUM_LAYERS * NUM_EXPERTS, "each page passes once"
    assert pager.stats()["steps"] == {"ring": 1, "cache": 0}
    disk.close()


def test_page_need_not_come_when_the_router_has_not_chosen_it(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pager, disk = _new_pager(pages, 14)
    begun = _note_reads(pages, monkeypatch)
    assert pager.begin_step([50]).name == "ring"
    for layer in range(NUM_LAYERS):
        _compute(pager, layer, [0])
    _rest(pager)
    assert (0, 3) in begun, "was on its way already"
    assert not {(0, 4), (0, 5)} & set(begun)
    disk.close()


def test_experts_of_the_last_tokens_stay_when_a_prompt_has_passed(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, 9)
    everyone = list(range(NUM_EXPERTS))
    for _ in range(2):
        pager.begin_step([50])
        for layer in range(NUM_LAYERS):
            for _ in pager.waves(layer, everyone, [[1, 2], [3, 4]]):
                pass
        pager.end_step()
    pager.begin_step([1])
    for layer in range(NUM_LAYERS - 1):
        assert {3, 4} <= pager._cache.slots_of(layer).keys()
    disk.close()


def test_all_pages_come_once_and_stay_when_there_is_a_slot_for_each(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, NUM_LAYERS * NUM_EXPERTS)
    counts = list(pager.load_all())
    assert counts == sorted(counts)
    assert counts[-1] == pager.num_pages
    read = disk.bytes_read
    for num_tokens in (50, 1):
        assert pager.begin_step([num_tokens]).name == "cache"
        for layer in range(NUM_LAYERS):
            assert _compute(pager, layer, [0, 5]) == [[0, 5]]
        pager.end_step()
    assert disk.bytes_read == read
    assert pager.stats()["hit_rate"] == 1
    assert pager.stats()["steps"] == {"ring": 0, "cache": 2}
    disk.close()


def test_pages_are_read_again_when_slots_were_lent_after_all_had_come(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, NUM_LAYERS * NUM_EXPERTS)
    list(pager.load_all())
    assert pager.lend(3) == 3
    for lent in (3, 0):
        pager.begin_step([1])
        for layer in range(NUM_LAYERS):
            _compute(pager, layer, list(range(NUM_EXPERTS)))
        pager.end_step()
        _check_slots(pager)
        pager.take_back(lent)
    assert pager.stats()["misses"] >= 3
    disk.close()


def test_loading_all_is_refused_with_the_page_when_one_cannot_be_read(
    pages: dict[int, list[Page]], faults: Faults
) -> None:
    pager, disk = _new_pager(pages, NUM_LAYERS * NUM_EXPERTS)
    faults.set({(1, 4)}, pages)
    with pytest.raises(PageError, match="expert 4 of layer 1: cannot read"):
        list(pager.load_all())
    disk.close()


def test_mistake_of_ours_is_raised_as_it_is_when_reading(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pager, disk = _new_pager(pages, 4)
    monkeypatch.setattr(WeightsFile, "read", lambda *_: 1 // 0)
    pager.begin_step([1])
    with pytest.raises(ZeroDivisionError):
        _compute(pager, 0, [1])
    disk.close()


def test_pages_wait_their_turn_when_many_come(pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pager_room, "_MOST_COMING", 1)
    pager, disk = _new_pager(pages, 14)
    pager.begin_step([50])
    assert pager._cache.num_loading == 1
    for layer in range(NUM_LAYERS):
        _compute(pager, layer, list(range(NUM_EXPERTS)))
    disk.close()


def test_expected_pages_are_read_before_they_are_asked_for(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, 9)
    pager.begin_step([1])
    for places_E in pager.waves(0, [0, 1], [[0, 1]]):
        del places_E
        pager.expect(1, [2, 4])
    _rest(pager)
    assert _compute(pager, 1, [2, 4]) == [[2, 4]]
    assert (pager.stats()["misses"], pager.stats()["hits"]) == (2, 2)
    pager.begin_step([1])
    pager.expect(2, [3, 5])
    assert pager._loader.is_idle, "what the present layer asks for comes first"
    _compute(pager, 1, [2])
    assert not {(2, 3), (2, 5)} - pager._loader._readings.keys() - {(2, e) for e in pager._cache.slots_of(2)}
    _rest(pager)
    assert _compute(pager, 2, [3, 5]) == [[3, 5]]
    disk.close()


def test_experts_that_will_be_needed_stay_when_others_come(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, 7)
    pager.begin_step([1])
    _compute(pager, 1, [0, 1])
    _compute(pager, 1, [2, 3, 4])
    pager.begin_step([1])
    pager.expect(1, [0, 1])  # worth less than the other three
    _compute(pager, 0, [2, 3])
    _compute(pager, 0, [4])
    assert set(pager._cache.slots_of(1)) == {0, 1, 2, 3}
    disk.close()


def test_guessed_pages_are_read_when_the_disk_is_idle(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, 9)
    pager.begin_step([1])
    pager.guess(1, [3])
    assert pager._loader.is_idle, "what the present layer asks for comes first"
    _compute(pager, 0, [0])
    _rest(pager)
    _compute(pager, 1, [3, 4])
    stats = pager.stats()
    assert (stats["misses"], stats["guesses_right"], stats["guesses_wrong"]) == (2, 1, 0)
    pager.guess(2, [0])
    _compute(pager, 1, [3])
    _rest(pager)
    _compute(pager, 2, [1])
    assert pager.stats()["guesses_wrong"] == 1
    disk.close()


def test_guessed_page_is_not_read_when_its_layer_has_asked_before(
    pages: dict[int, list[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pager, disk = _new_pager(pages, 9)
    pager.begin_step([1])
    begun = _note_reads(pages, monkeypatch)
    pager.guess(1, [3])
    _compute(pager, 1, [0])
    _compute(pager, 2, [0])
    _rest(pager)
    assert begun == [(1, 0), (2, 0)]
    disk.close()


def test_guessing_stops_and_begins_again_when_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guess_room, "_PAUSE", 5)
    guesses = Guesses()
    for _ in range(guess_room._NUM_RECENT):
        assert guesses.pay
        guesses.add((0, 1))
        guesses.settle(0, {2})
    assert not guesses.pay
    for _ in range(5):
        guesses.settle(0, set())
    assert guesses.pay
    assert (guesses.right, guesses.wrong) == (0, guess_room._NUM_RECENT)


def test_expected_pages_give_way_when_they_have_taken_every_slot(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, 2)
    pager.begin_step([1])
    _compute(pager, 1, [0, 1])
    pager.expect(1, [0, 1])
    assert _compute(pager, 0, [2, 3])
    disk.close()


def test_slots_are_lent_and_used_when_a_pass_that_failed_left_pages_expected(pages: dict[int, list[Page]]) -> None:
    pager, disk = _new_pager(pages, 3)
    pager.begin_step([1])
    _compute(pager, 1, [0, 1, 2])
    pager.expect(1, [0, 1, 2])
    pager.begin_step([1])
    _check_slots(pager)
    pager.expect(1, [0, 1, 2])
    assert pager.lend(1) == 1
    pager.take_back(1)
    _check_slots(pager)
    disk.close()
