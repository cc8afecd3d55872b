"""Memory that requests need for a while, taken from the expert pages and given back."""

from moesaic.memory.ledger import Ledger
from moesaic.memory.pager import Pager

PAGES = "expert pages"


class Room:
    """A ledger, and the pages that give way when it is full.

    Args:
        ledger: where everything is written down.
        pager: whose slots give way; None: nothing does.
    """

    def __init__(self, ledger: Ledger, pager: Pager | None) -> None:
        self._ledger = ledger
        self._pager = pager
        self._num_lent = 0

    def take(self, purpose: str, num_bytes: int) -> None:
        """Write down that memory will be taken; expert pages leave if they have to.

        Raises:
            MemoryBudgetError: there is not as much, even with the fewest pages.
        """
        free = self._ledger.free
        if self._pager is not None and free is not None and free < num_bytes:
            size = self._pager.pool.layout.num_bytes
            num_lent = self._pager.lend(-(-(num_bytes - free) // size))
            self._ledger.release(PAGES, num_lent * size)
            self._num_lent += num_lent
        try:
            self._ledger.reserve(purpose, num_bytes)
        except BaseException:
            self._take_back()
            raise

    def give_back(self, purpose: str, num_bytes: int) -> None:
        """Write down that memory has been given back; pages may have it again."""
        self._ledger.release(purpose, num_bytes)
        self._take_back()

    def _take_back(self) -> None:
        if self._pager is None or self._num_lent == 0:
            return
        free = self._ledger.free
        assert free is not None, "slots are lent within a budget"
        size = self._pager.pool.layout.num_bytes
        count = min(self._num_lent, free // size)
        self._ledger.reserve(PAGES, count * size)
        self._pager.take_back(count)
        self._num_lent -= count
