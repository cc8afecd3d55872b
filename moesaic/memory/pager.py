"""Brings the experts that a layer needs into slots, and hands them out in waves as they arrive."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from moesaic.errors import CheckpointError
from moesaic.memory.cache import Key, PageCache, Reason
from moesaic.memory.guess import Guesses
from moesaic.memory.loader import Loader
from moesaic.memory.mode import Mode, Step, choose_mode, expected_touched
from moesaic.memory.page import Page
from moesaic.memory.page_error import PageError
from moesaic.memory.pool import Pool
from moesaic.memory.source import Slots, Source
from moesaic.memory.step_times import StepTimes

# Pages that nobody waits for are read so many at once: the disk is busy, and what becomes urgent waits for few.
_MOST_COMING = 4


class Pager:
    """The pages of a model, of which some are in the slots of a pool.

    Args:
        pages: by layer, in the order of computation, the page of each expert.
        experts_per_token: how many a token chooses in a layer.
        pool: the slots.
        source: where pages come from.
        policy: which page leaves, a name of `POLICIES`.

    Attributes:
        pool: the slots.
        step_lengths: tokens of each sequence in the present pass.
    """

    def __init__(
        self,
        pages: Mapping[int, Sequence[Page]],
        experts_per_token: int,
        pool: Slots[Any],
        source: Source[Any],
        policy: str = "decayed",
    ) -> None:
        self.pool = pool
        self.step_lengths: Sequence[int] = []
        self._num_experts = {layer: len(each) for layer, each in pages.items()}
        self._experts_per_token = experts_per_token
        self._cache = PageCache(pool.num_slots, self._num_experts, policy)
        self._loader = Loader(pages, self._cache, pool, source)
        self._guesses = Guesses()
        self._times = StepTimes()
        self._mode = Mode("cache", 0)
        # What is to be read, the next one last: tokens wait for it; its layer will need it; its layer may need it.
        self._asked: list[Key] = []
        self._coming: list[Key] = []
        self._guessed: list[Key] = []
        self._begun: set[Key] = set()  # that the present layer asked for
        # Once every page is resident, and has a slot for good, the places of each layer.
        self._settled: dict[int, Tensor] = {}
        self._hits = self._misses = 0
        self._steps = {"ring": 0, "cache": 0}

    @property
    def num_pages(self) -> int:
        """Return how many pages there are."""
        return sum(self._num_experts.values())

    @property
    def num_missing(self) -> int:
        """Return how many pages are not resident."""
        return self.num_pages - sum(len(self._cache.slots_of(layer)) for layer in self._num_experts)

    @property
    def wants_guesses(self) -> bool:
        """Tell whether `guess` may do anything now."""
        return not self._settled and self._mode.name == "cache" and self._guesses.pay

    def num_experts(self, layer: int) -> int:
        """Return how many experts a layer has."""
        return self._num_experts[layer]

    def begin_step(self, lengths: Sequence[int]) -> Mode:
        """Choose how the coming pass through all layers gets its pages, and begin to read if that is known already.

        Args:
            lengths: tokens of each sequence in the pass.
        """
        self.step_lengths = lengths
        if self._settled:
            self._steps["cache"] += 1  # as of any pass that finds all its pages
            return self._mode
        num_tokens, num_experts = sum(lengths), max(self._num_experts.values())
        touched = expected_touched(num_experts, self._experts_per_token, num_tokens)
        step = Step(touched, self.num_missing, self._loader.page_seconds, self._times.of(num_tokens))
        self._mode = choose_mode(step, num_experts, len(self._num_experts), self._cache.num_slots)
        self._steps[self._mode.name] += 1
        self._cache.keep_back(self._mode.num_passing)
        self._cache.enter(next(iter(self._num_experts)))
        self._cache.unpin_all()  # a pass that failed may have left some
        self._coming, self._guessed = [], []
        if self._mode.name == "ring":
            self._coming = self._all_keys()
        self._times.begin(num_tokens, self._loader.stall_seconds)
        self._load()
        return self._mode

    def end_step(self) -> None:
        """Say that the pass is over."""
        if not self._settled:
            self._times.end(self._loader.stall_seconds)

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Say what a coming layer will need: it stays, or is read from a wave on, once nothing more urgent is."""
        if self._settled:
            return
        for expert in experts:
            self._cache.pin((layer, expert))
        if self._mode.name == "cache":  # to be read after what the present layer will ask for
            self._coming = [*((layer, expert) for expert in reversed(experts)), *self._coming]

    def guess(self, layer: int, experts: Sequence[int]) -> None:
        """Say what a coming layer may need, the likeliest first: it is read when the disk is idle, from a wave on."""
        if self.wants_guesses:
            self._guessed = [(layer, expert) for expert in reversed(experts)]

    def waves(
        self, layer: int, experts: Sequence[int], recent: Iterable[Sequence[int]]
    ) -> Generator[Tensor, None, None]:
        """Yield, as their pages arrive, the slots of the experts that a layer needs.

        Drawing the next wave says that the former one has been computed: its slots may be filled anew.

        Args:
            layer: one of those with pages.
            experts: those needed, each once.
            recent: what the last tokens chose, a list for each token step, for the policy to remember.

        Yields:
            int64 [E]: the slot of each expert of the wave, -1 for the others.

        Raises:
            PageError: a page cannot be read; the others stay.
        """
        if self._settled:
            self._hits += len(experts)
            yield self._settled[layer]
            return
        self._ask(layer, experts, recent)
        waiting = set(experts)
        try:
            while waiting:
                slots = self._cache.slots_of(layer)
                ready = [expert for expert in waiting if expert in slots]
                if ready:
                    yield self._loader.places(layer, ready)
                    waiting.difference_update(ready)
                    for expert in ready:
                        self._cache.unpin((layer, expert))
                if not ready and self._loader.is_idle:  # what later layers expect has taken every slot
                    self._cache.unpin_others(layer)
                    self._load()
                self._collect(not ready, {(layer, expert) for expert in waiting})
                self._load()
        finally:
            for expert in waiting:
                self._cache.unpin((layer, expert))
            self._asked = []

    def load_all(self) -> Iterator[int]:
        """Read every page into a pool that has a slot for each; yield how many are there, as they arrive.

        Raises:
            PageError: a page cannot be read.
        """
        assert self.pool.num_slots >= self.num_pages, "there is a slot for every page"
        self._asked = self._all_keys()
        everything = set(self._asked)
        while self.num_missing:
            self._load()
            self._collect(True, everything)
            yield self.num_pages - self.num_missing
        self._settled = {layer: self._loader.places(layer, range(count)) for layer, count in self._num_experts.items()}

    def lend(self, num_slots: int) -> int:
        """Give slots' memory back to the system, those of pages that are needed last first. Only of a `Pool`.

        Returns:
            How many: fewer where that would leave a token's experts no room.
        """
        assert isinstance(self.pool, Pool), "a device's slots are of one piece"
        self._cache.unpin_all()  # no pass is under way; one that failed may have left some
        count = max(0, min(num_slots, self._cache.num_slots - self._experts_per_token))
        for _ in range(count):
            while (slot := self._cache.retire()) is None:
                self._collect(True, set())
            self.pool.give_back(slot)
            self._settled = {}
        return count

    def take_back(self, num_slots: int) -> None:
        """Use slots again that were lent."""
        self._cache.restore(num_slots)

    def stats(self) -> dict[str, Any]:
        """Return counts of what went on, and how many pages and slots there are."""
        asked = self._hits + self._misses
        return {
            "hits": self._hits,
            "misses": self._misses,
            "hit_rate": self._hits / asked if asked else None,
            "stall_seconds": self._loader.stall_seconds,
            "guesses_right": self._guesses.right,
            "guesses_wrong": self._guesses.wrong,
            "evictions": self._cache.evictions,
            "steps": dict(self._steps),
            "pages": self.num_pages,
            "slots": self._cache.num_slots,
            "resident": self.num_pages - self.num_missing,
        }

    def _all_keys(self) -> list[Key]:
        return [(layer, expert) for layer, count in self._num_experts.items() for expert in range(count)][::-1]

    def _ask(self, layer: int, experts: Sequence[int], recent: Iterable[Sequence[int]]) -> None:
        """Begin to read what a layer needs and has not."""
        self._cache.enter(layer)
        for chosen in recent:
            self._cache.use(layer, chosen)
        self._guesses.settle(layer, set(experts))
        for expert in experts:
            self._cache.pin((layer, expert))
        slots = self._cache.slots_of(layer)
        missing = [(layer, expert) for expert in experts if expert not in slots]
        self._misses += len(missing)
        self._hits += len(experts) - len(missing)
        self._begun.clear()
        self._asked = missing[::-1]
        # The router has spoken: what it did not choose need not come.
        self._coming = [key for key in self._coming if key[0] != layer]
        self._guessed = [key for key in self._guessed if key[0] != layer]
        self._load()

    def _load(self) -> None:
        """Begin to read what may be read now, the most urgent first."""
        self._begin(self._asked, "passing" if self._mode.name == "ring" else "asked")
        if not self._asked:
            self._begin(self._coming, "coming" if self._mode.name == "ring" else "guessed")
        if not self._coming and self._loader.is_idle:
            self._begin(self._guessed, "guessed")

    def _begin(self, keys: list[Key], reason: Reason) -> None:
        is_asked = keys is self._asked
        while keys and (is_asked or self._cache.num_loading < _MOST_COMING):
            if not self._loader.is_here(keys[-1]):
                if not self._loader.begin(keys[-1], reason, urgent=is_asked):
                    return
                if is_asked:
                    self._begun.add(keys[-1])
                if keys is self._guessed:
                    self._guesses.add(keys[-1])
            keys.pop()

    def _collect(self, wait: bool, needed: set[Key]) -> None:
        """Take in what has arrived; raise the failure of a page that is needed.

        One that had been on its way when it was asked for is asked for again; any other's failure is forgotten.
        """
        for key, failure in self._loader.collect(wait).items():
            if key not in needed:
                continue
            if key not in self._begun:
                self._asked.append(key)
            elif isinstance(failure, CheckpointError):
                raise PageError(*key, failure) from failure
            else:
                raise failure
