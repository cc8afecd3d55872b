"""When a process of a run fails: one of them tells why, and all of them end.

Whoever fails on its own account tells at once. The others notice that it is gone, or that it does not answer in time;
they first leave its text room, then say which ranks did not report, and end with it.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from moesaic.comm.world import World
from moesaic.errors import MoesaicError, ParallelError

# What gloo and torch's store say of a peer that has ended or does not answer.
_SIGNS = ("connection closed", "connection reset", "connection refused", "broken pipe", "timed out", "timeout")
# Until then whoever started the processes has ended those that only follow.
_GRACE_S = 5.0


@contextmanager
def name_rank(world: World) -> Iterator[None]:
    """Say in an error which process it is of, and tell one's own from what follows from another's.

    Raises:
        ParallelError: another process ended, or did not answer in time.
        MoesaicError: as raised in the block, with the rank before it.
    """
    try:
        yield
    except MoesaicError as failure:
        if world.size > 1:
            failure.text = f"rank {world.rank}: {failure.text}"
            failure.args = (failure.text,)
        raise
    except RuntimeError as failure:
        if world.size == 1 or not any(sign in str(failure).lower() for sign in _SIGNS):
            raise
        silent = _who_is_silent(world)
        raise ParallelError(
            f"rank {world.rank}: {_tell(silent)}",
            "see what it printed; if it only was slow, raise parallel.timeout_s",
        ) from failure


def _tell(silent: list[int]) -> str:
    if not silent:
        return "another rank ended or did not answer in time"
    names = ", ".join(map(str, silent[:8])) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
    return f"rank {names} ended or did not answer in time"


def _who_is_silent(world: World) -> list[int]:
    """Report to the store that torchrun keeps, and return those who have not after a while."""
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timeout=timedelta(seconds=_GRACE_S)
        )
        run = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store.set(f"moesaic/{run}/failed/{world.rank}", "1")
        time.sleep(_GRACE_S)
        return [rank for rank in range(world.size) if not store.check([f"moesaic/{run}/failed/{rank}"])]
    except (KeyError, RuntimeError):  # nobody keeps one any more
        return []
