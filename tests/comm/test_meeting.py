"""Ranks that meet where others have met before."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from moesaic.comm.meeting import meet
from moesaic.errors import ParallelError


def _store(timeout_s: float = 20.0) -> dist.Store:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=timeout_s))
    return store


def _meet_all(store: dist.Store, order: list[int]) -> dict[int, dist.Store]:
    """Let ranks come in an order, and return what each got."""
    found: dict[int, dist.Store] = {}

    def come(rank: int) -> None:
        found[rank] = meet(store, rank, len(order), 20.0)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == sorted(order)
    return found


def test_ranks_share_keys_that_no_earlier_start_used_when_they_meet_again() -> None:
    store = _store()
    for attempt, order in enumerate([[0, 1, 2], [2, 1, 0], [1, 0, 2]]):
        found = _meet_all(store, order)
        assert not any(each.check(["address"]) for each in found.values()), "left by an earlier start"
        found[0].set("address", str(attempt))
        assert [each.get("address").decode() for each in found.values()] == [str(attempt)] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_gives_up_when_others_do_not_come(rank: int) -> None:
    store = _store(0.2)
    with pytest.raises(ParallelError, match=rf"rank {rank}: not all of 2 ranks came within 0.2 s"):
        meet(store, rank, 2, 0.2)


def test_rank_does_not_follow_an_offer_whose_maker_is_gone() -> None:
    store = _store()
    _meet_all(store, [0, 1])  # leaves an offer, and who was heard
    with pytest.raises(ParallelError, match="rank 1: not all of 2 ranks came"):
        meet(store, 1, 2, 0.3)
