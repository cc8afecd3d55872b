"""Meeting at a store that others have met at before.

torchrun keeps one store through all its restarts, where the addresses of processes that have died still stand. So the
first rank offers a name that nobody had, the others answer under it, each with a name of its own, and when all have
answered, the first says whom it has heard. Whoever is named there uses the keys below that name and no others.
"""

import time
import uuid

import torch.distributed as dist

from moesaic.errors import ParallelError

_OFFER = "moesaic/offer"
_PAUSE_S = 0.02


def meet(store: dist.Store, rank: int, size: int, timeout_s: float) -> dist.Store:
    """Return a part of a store that only the ranks of this start use; all must call.

    Raises:
        ParallelError: not all came in time.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    try:
        if rank == 0:
            store.set(_OFFER, own)
            heard = [store.get(f"moesaic/{own}/{other}").decode() for other in range(1, size)]
            store.set(f"moesaic/{own}/heard", " ".join(heard))
            return dist.PrefixStore(own, store)
        while time.monotonic() < deadline:
            # Maybe that of a first rank that has died: the present one's is there before long.
            offer = store.get(_OFFER).decode()
            store.set(f"moesaic/{offer}/{rank}", own)
            if store.check([f"moesaic/{offer}/heard"]) and own in store.get(f"moesaic/{offer}/heard").decode().split():
                return dist.PrefixStore(offer, store)
            time.sleep(_PAUSE_S)
    except RuntimeError as failure:
        raise _late(rank, size, timeout_s) from failure
    raise _late(rank, size, timeout_s)


def _late(rank: int, size: int, timeout_s: float) -> ParallelError:
    return ParallelError(
        f"rank {rank}: not all of {size} ranks came within {timeout_s:g} s",
        "look whether all nodes have started; if they are slow to, raise parallel.timeout_s",
    )
