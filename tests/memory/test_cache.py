"""Which layer gives a slot when another needs one."""

import random

import pytest

from moesaic.memory.cache import PageCache
from moesaic.memory.replay import replay


@pytest.mark.parametrize(("current", "giver"), [(0, 0), (1, 0), (2, 2)])
def test_layer_that_is_needed_last_gives_way_when_two_are_beyond_their_shares(current: int, giver: int) -> None:
    cache = PageCache(6, {0: 6, 1: 6, 2: 6}, "lru")
    for key in ((layer, expert) for layer in (0, 2) for expert in range(3)):
        cache.begin(key, "asked")
        cache.end(key, arrived=True)
    cache.enter(current)
    assert cache.begin((1, 0), "asked") is not None
    assert {layer: len(cache.slots_of(layer)) for layer in (0, 2)} == {0: 3, 2: 3} | {giver: 2}
    assert cache.evictions == 1


def test_all_that_a_layer_lacks_is_begun_at_once_when_its_own_pages_may_leave() -> None:
    cache = PageCache(8, {0: 6, 1: 6}, "decayed")
    for key in [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]:
        assert cache.begin(key, "asked") is not None
        cache.end(key, arrived=True)
    cache.enter(0)
    cache.pin((0, 0))
    assert None not in [cache.begin((0, expert), "asked") for expert in (4, 5)]
    assert cache.begin((1, 4), "asked") is not None, "each layer gives of its own share"
    assert sorted(cache.slots_of(0)) == [0, 1], "no more leave than come"
    assert len(cache.slots_of(1)) == 3


@pytest.mark.parametrize("policy", ["decayed", "lru"])
@pytest.mark.parametrize("capacity", [4, 5, 9])
def test_hits_are_those_of_the_replay_when_a_token_comes_after_another(policy: str, capacity: int) -> None:
    drawn, layers, experts = random.Random(capacity), range(3), range(12)
    popularity = [1 / (1 + expert) for expert in experts]
    trace = [[sorted(set(drawn.choices(experts, popularity, k=4))) for _ in layers] for _ in range(200)]
    cache = PageCache(capacity * len(layers), {layer: len(experts) for layer in layers}, policy)
    num_hits = 0
    for layer, chosen in ((layer, chosen) for token in trace for layer, chosen in enumerate(token)):
        cache.enter(layer)
        cache.use(layer, chosen)
        for expert in chosen:
            cache.pin((layer, expert))
        missing = [(layer, expert) for expert in chosen if expert not in cache.slots_of(layer)]
        num_hits += len(chosen) - len(missing)
        assert None not in [cache.begin(key, "asked") for key in missing], "all are on their way at once"
        for key in missing:
            cache.end(key, arrived=True)
        cache.unpin_all()
    num_uses = sum(len(chosen) for token in trace for chosen in token)
    assert num_hits / num_uses == pytest.approx(replay(trace, len(experts), capacity, policy), abs=0.01)
