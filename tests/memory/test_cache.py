"""Which layer gives a slot when another needs one."""

import pytest

from moesaic.memory.cache import PageCache


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
