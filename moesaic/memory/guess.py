"""Pages that were read because a layer may ask for them, and whether that pays."""

from collections import deque

from moesaic.memory.cache import Key

# Guesses that are looked back on, the share of them that must have been right, and the steps without any after which it
# is tried again.
_NUM_RECENT = 64
_LEAST_RIGHT = 0.5
_PAUSE = 1000


class Guesses:
    """Guessed pages, until the layer has said what it needs.

    Attributes:
        right, wrong: guessed pages that were needed, and that were read for nothing.
    """

    def __init__(self) -> None:
        self.right = 0
        self.wrong = 0
        self._open: set[Key] = set()
        self._recent: deque[bool] = deque(maxlen=_NUM_RECENT)
        self._pause = 0

    @property
    def pay(self) -> bool:
        """Tell whether to guess: too few of late were right where this is False."""
        return self._pause == 0

    def add(self, key: Key) -> None:
        """Note that a guessed page is being read."""
        self._open.add(key)

    def settle(self, layer: int, experts: set[int]) -> None:
        """Note what a layer needs."""
        self._pause = max(0, self._pause - 1)
        for key in [key for key in self._open if key[0] == layer]:
            self._open.remove(key)
            is_right = key[1] in experts
            self.right += is_right
            self.wrong += not is_right
            self._recent.append(is_right)
        if len(self._recent) == _NUM_RECENT and sum(self._recent) < _LEAST_RIGHT * _NUM_RECENT:
            self._recent.clear()
            self._pause = _PAUSE
