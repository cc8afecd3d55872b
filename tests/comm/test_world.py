"""Meeting other processes, or being alone."""

import pytest
import torch

from moesaic.comm.world import ALONE, World, join_world
from moesaic.errors import UnsupportedError


def test_process_is_alone_when_nobody_started_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_world(1) as world:
        assert world == ALONE
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_gpu_is_refused_when_there_is_none(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(UnsupportedError, match=f"'cuda:{rank}' was asked for"), join_world(1, "cuda"):
        pass
