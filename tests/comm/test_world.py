"""Meeting other processes, or being alone."""

import pytest

from moesaic.comm.world import ALONE, World, join_world


def test_process_is_alone_when_nobody_started_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_world(1) as world:
        assert world is ALONE
        assert world.total([2.5]) == [2.5]
        assert world.largest(3) == 3
        assert world.gather([1, 2]) == [[1, 2]]
        with world.first_before_others():
            pass


@pytest.mark.parametrize(("num_rows", "size"), [(8, 2), (7, 3), (2, 4), (0, 2), (5, 1)])
def test_rows_are_dealt_out_evenly_in_order_when_ranks_share_a_batch(num_rows: int, size: int) -> None:
    parts = [list(range(num_rows))[World(rank, size).rows(num_rows)] for rank in range(size)]
    assert [row for part in parts for row in part] == list(range(num_rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
