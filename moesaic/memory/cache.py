"""Which page is in which slot, and which one leaves when there is none.

Slots are shared out by layer: one cache over all layers would forget every page before its layer comes round again.
Some may be kept back for pages on their way through. A layer beyond its share gives way first, the one that is needed
last before the others.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from moesaic.memory.policy import Policy, make_policy

# Of a page: its layer and its expert.
Key = tuple[int, int]
# Why a page comes: tokens wait for it; they do, and all of its layer passes; its layer will pass; it may be asked for.
Reason = Literal["asked", "passing", "coming", "guessed"]


class PageCache:
    """The bookkeeping of slots. A slot is free, or holds a page that is loading or resident.

    Args:
        num_slots: S.
        num_experts: of each layer with pages, in the order of computation.
        policy: a name of `POLICIES`.
    """

    def __init__(self, num_slots: int, num_experts: Mapping[int, int], policy: str) -> None:
        self.num_slots = num_slots
        self._order = {layer: index for index, layer in enumerate(num_experts)}
        self._policies: dict[int, Policy] = {layer: make_policy(policy) for layer in num_experts}
        self._free = list(range(num_slots))[::-1]
        self._retired: list[int] = []
        self._loading: dict[Key, int] = {}
        self._resident: dict[int, dict[int, int]] = {layer: {} for layer in num_experts}
        self._pins: set[Key] = set()
        self._current = 0
        self._shares: dict[int, int] = {}
        self.evictions = 0
        self.keep_back(0)

    def keep_back(self, num_slots: int) -> None:
        """Share out all slots but so many, which pages pass through."""
        self._kept_back = num_slots
        each, more = divmod(max(0, self.num_slots - num_slots), len(self._order))
        self._shares = {layer: each + (index < more) for layer, index in self._order.items()}

    def enter(self, layer: int) -> None:
        """Say that a layer is being computed: which layers come soon follows from it."""
        self._current = self._order[layer]

    def use(self, layer: int, experts: Iterable[int]) -> None:
        """Tell the policy which experts one token step of a layer chose."""
        policy = self._policies[layer]
        policy.step()
        for expert in experts:
            policy.use(expert)

    def slots_of(self, layer: int) -> Mapping[int, int]:
        """Return the slots of a layer's resident experts."""
        return self._resident[layer]

    @property
    def num_loading(self) -> int:
        """Return how many pages are on their way."""
        return len(self._loading)

    def pin(self, key: Key) -> None:
        """Keep a page, once it is resident, until it is unpinned."""
        self._pins.add(key)

    def unpin(self, key: Key) -> None:
        """Let a page leave."""
        self._pins.discard(key)

    def unpin_others(self, layer: int) -> None:
        """Let every page of other layers leave."""
        self._pins = {key for key in self._pins if key[0] == layer}

    def unpin_all(self) -> None:
        """Let every page leave."""
        self._pins.clear()

    def begin(self, key: Key, reason: Reason) -> int | None:
        """Return a slot for a page that is neither resident nor loading; None: there is none for this reason now."""
        assert key not in self._loading, "a page is loaded once"
        assert key[1] not in self._resident[key[0]], "a page is loaded once"
        if not self._free:
            layer = self._layer_to_give(key[0], reason)
            if layer is None:
                return None
            self._evict(layer)
        self._loading[key] = self._free.pop()
        return self._loading[key]

    def end(self, key: Key, arrived: bool) -> None:
        """Say that a page is resident, or that it will not come."""
        slot = self._loading.pop(key)
        layer, expert = key
        if arrived:
            self._resident[layer][expert] = slot
            self._policies[layer].add(expert)
        else:
            self._free.append(slot)

    def retire(self) -> int | None:
        """Take a slot out of use; None: all of them are loading or pinned."""
        if not self._free:
            givers = [layer for layer in self._order if self._count_idle(layer)]
            if not givers:
                return None
            self._evict(max(givers, key=lambda layer: (len(self._resident[layer]), self._wait(layer))))
        self._retired.append(self._free.pop())
        self.num_slots -= 1
        self.keep_back(self._kept_back)
        return self._retired[-1]

    def restore(self, num_slots: int) -> None:
        """Use so many retired slots again."""
        for _ in range(num_slots):
            self._free.append(self._retired.pop())
        self.num_slots += num_slots
        self.keep_back(self._kept_back)

    def _layer_to_give(self, layer: int, reason: Reason) -> int | None:
        """Return the layer of which a page leaves for one of this layer."""
        soon = (self._order[layer] - self._current) % len(self._order)
        idle = {each: self._count_idle(each) for each in self._order}
        givers = [each for each in self._order if idle[each] and self._wait(each) > soon]
        beyond = [each for each in givers if idle[each] > self._shares[each]]
        if beyond:
            return max(beyond, key=self._wait)
        # Of a layer that passes as a whole every page comes, and what its policy keeps would leave for nothing.
        loading = sum(each == layer for each, _ in self._loading)
        held = len(self._resident[layer]) + loading
        if reason in ("asked", "guessed") and held >= self._shares[layer] and idle[layer]:
            return layer
        if reason in ("coming", "guessed") or self._loading or idle[layer] < len(self._resident[layer]):
            return None  # for those who wait, what is loading or about to be computed makes room soon
        return layer if idle[layer] else max(givers, key=self._wait, default=None)

    def _wait(self, layer: int) -> int:
        """Return after how many layers a page of this one is asked for again; of the present layer: all."""
        return (self._order[layer] - self._current - 1) % len(self._order) + 1

    def _count_idle(self, layer: int) -> int:
        """Count the pages of a layer that may leave."""
        return sum((layer, expert) not in self._pins for expert in self._resident[layer])

    def _evict(self, layer: int) -> None:
        candidates = [expert for expert in self._resident[layer] if (layer, expert) not in self._pins]
        expert = self._policies[layer].victim(candidates)
        self._policies[layer].remove(expert)
        self._free.append(self._resident[layer].pop(expert))
        self.evictions += 1
