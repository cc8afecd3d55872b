"""How long a pass through the model takes where nothing has to be waited for, by how many tokens it has."""

import time

# Of the newest measurement in the running mean.
_WEIGHT = 0.3


class StepTimes:
    """Running means of measured passes; passes of about as many tokens share one."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._begun: tuple[int, float, float] | None = None

    def of(self, num_tokens: int) -> float | None:
        """Return the seconds that a pass of so many tokens computes; None: none such was measured."""
        return self._means.get(num_tokens.bit_length())

    def begin(self, num_tokens: int, stall_seconds: float) -> None:
        """Note that a pass begins.

        Args:
            num_tokens: that it has.
            stall_seconds: waited for pages so far, in all passes.
        """
        self._begun = num_tokens.bit_length(), time.perf_counter(), stall_seconds

    def end(self, stall_seconds: float) -> None:
        """Note that the pass is over; one that failed is never ended, and not counted."""
        assert self._begun is not None, "a pass ends after it has begun"
        size, begin, stalled = self._begun
        seconds = time.perf_counter() - begin - (stall_seconds - stalled)
        before = self._means.get(size, seconds)
        self._means[size] = before + _WEIGHT * (seconds - before)
