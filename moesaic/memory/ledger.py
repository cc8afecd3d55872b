"""The one account of memory: whoever takes some writes it down first."""

import threading

from moesaic.errors import MemoryBudgetError
from moesaic.units import format_bytes


class Ledger:
    """Bytes held, by what they are for, against a budget.

    Args:
        budget: as the attribute.
        option: that sets it, for hints.

    Attributes:
        budget: bytes that all holdings together never pass; None: no limit.
        most: the most that was ever held.
    """

    def __init__(self, budget: int | None, option: str = "--memory") -> None:
        self.budget = budget
        self._option = option
        self.most = 0
        self._held: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def holdings(self) -> dict[str, int]:
        """Return the bytes held by purpose."""
        with self._lock:
            return dict(self._held)

    @property
    def held(self) -> int:
        """Return the bytes held in all."""
        return sum(self.holdings.values())

    @property
    def free(self) -> int | None:
        """Return the bytes that may still be taken; None: no limit."""
        return None if self.budget is None else self.budget - self.held

    def reserve(self, purpose: str, num_bytes: int) -> None:
        """Write down that memory will be taken.

        Raises:
            MemoryBudgetError: it would pass the budget; nothing is written down then.
        """
        assert num_bytes >= 0, "memory is given back with release"
        with self._lock:
            held = sum(self._held.values())
            if self.budget is not None and held + num_bytes > self.budget:
                raise MemoryBudgetError(
                    f"{purpose} would take {format_bytes(num_bytes)}; of the budget of {format_bytes(self.budget)} "
                    f"{format_bytes(self.budget - held)} are free",
                    f"give a larger {self._option}, shorter prompts, fewer at once, or a lower max_tokens",
                )
            self._held[purpose] = self._held.get(purpose, 0) + num_bytes
            self.most = max(self.most, held + num_bytes)

    def release(self, purpose: str, num_bytes: int) -> None:
        """Write down that memory has been given back."""
        with self._lock:
            held = self._held.get(purpose, 0)
            assert 0 <= num_bytes <= held, f"{purpose} gives back {num_bytes} bytes of {held}"
            self._held[purpose] = held - num_bytes
