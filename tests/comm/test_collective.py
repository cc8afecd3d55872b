"""Messages are counted as they are sent."""

import threading

import torch
import torch.distributed as dist

from moesaic.comm.collective import TRAFFIC, Traffic, all_gather, all_reduce, all_to_all
from tests.comm.pool import Pools


def _send() -> dict[str, int]:
    TRAFFIC.take()
    rank = dist.get_rank()
    total = torch.full((3,), rank + 1.0)
    all_reduce(total)
    assert total.tolist() == [3.0] * 3
    largest = torch.tensor(rank)
    work = all_reduce(largest, op=dist.ReduceOp.MAX, async_op=True)
    assert work is not None
    work.wait()
    assert int(largest) == 1
    parts = [torch.empty(2) for _ in range(2)]
    all_gather(parts, torch.full((2,), float(rank)))
    assert torch.stack(parts).tolist() == [[0, 0], [1, 1]]
    out = torch.empty(2 if rank == 0 else 1)
    all_to_all(out, torch.arange(2.0 - rank) + 10 * rank, [1, 1] if rank == 0 else [1, 0], [1, 1 - rank])
    assert out.tolist() == ([0, 10] if rank == 0 else [1])
    return TRAFFIC.take()


def test_messages_and_bytes_are_those_that_a_rank_gave_when_counted(pools: Pools) -> None:
    first, second = pools(2).run(_send)
    # Three numbers of four bytes and one of eight; two; two or one.
    assert first == {
        "all_gather_bytes": 8,
        "all_gather_messages": 1,
        "all_reduce_bytes": 20,
        "all_reduce_messages": 2,
        "all_to_all_bytes": 8,
        "all_to_all_messages": 1,
    }
    assert second == first | {"all_to_all_bytes": 4}


def test_no_message_is_lost_when_threads_count_at_once() -> None:
    traffic, tensor = Traffic(), torch.zeros(1)

    def count() -> None:
        for _ in range(2000):
            traffic.add("all_reduce", tensor)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traffic.take() == {"all_reduce_bytes": 32000, "all_reduce_messages": 8000}
    assert traffic.take() == {}, "what was taken is not told again"
