"""Work that the ranks of a run do together: it has succeeded when it has on each of them, and else fails on all."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from moesaic.comm.world import ALONE, World
from moesaic.errors import CheckpointError, MoesaicError

T = TypeVar("T")


class Agreement:
    """The ranks that agree.

    Args:
        world: they.
        group: through which they talk; None: all that have met.
    """

    def __init__(self, world: World = ALONE, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.size, self.is_first = world.rank, world.size, world.is_first
        self._group = group

    @staticmethod
    def apart(world: World, timeout_s: int) -> "Agreement":
        """Return one that may agree while the ranks talk of other things; all must call.

        Args:
            world: the ranks.
            timeout_s: after so long a wait, another rank counts as dead.
        """
        group = dist.new_group(timeout=timedelta(seconds=timeout_s), backend="gloo") if world.size > 1 else None
        return Agreement(world, group)

    def gather(self, value: T) -> list[T]:
        """Return every rank's value; all must call.

        Raises:
            RuntimeError: a rank has ended or does not answer.
        """
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def do(self, work: Callable[[], T]) -> list[T]:
        """Do something on each rank, and return what each got; all must call.

        Raises:
            Exception: as raised here by the work.
            CheckpointError: it failed on another rank, which the text names.
            RuntimeError: a rank has ended or does not answer.
        """
        result: T | None = None
        own: Exception | None = None
        try:
            result = work()
        except Exception as failure:
            own = failure
        told = None if own is None else (_text(own), getattr(own, "hint", "see what that rank tells"))
        answers = self.gather((result, told))
        if own is not None:
            raise own
        for rank, (_, reason) in enumerate(answers):
            if reason is not None:
                raise CheckpointError(f"rank {rank} failed: {reason[0]}", reason[1])
        return [answer for answer, _ in answers]  # type: ignore[misc]


def _text(failure: Exception) -> str:
    return failure.text if isinstance(failure, MoesaicError) else f"{type(failure).__name__}: {failure}"
