"""The batch of which the tokens at hand are a part.

Balance is about all tokens that are computed together, and so is what a full expert drops or an expert chooses. Where
a batch is spread over processes, each has some of its tokens, and asks here for what it needs to know of the others.
"""

from typing import Protocol

from torch import Tensor


class Batch(Protocol):
    """A batch in parts, each of them somebody's tokens; all of them must ask alike."""

    def total(self, counts: Tensor) -> Tensor:
        """Return the sum of every part's counts."""
        ...

    def place(self, num_tokens: int) -> tuple[int, int]:
        """Return after how many tokens of the batch this part's begin, and how many there are in all."""
        ...

    def gather(self, rows_TX: Tensor) -> Tensor:
        """Return the rows of all parts in the order of the batch; gradients reach those of this part alone."""
        ...


class WholeBatch:
    """All tokens are at hand."""

    def total(self, counts: Tensor) -> Tensor:
        """Return the counts."""
        return counts

    def place(self, num_tokens: int) -> tuple[int, int]:
        """Return the beginning and all."""
        return 0, num_tokens

    def gather(self, rows_TX: Tensor) -> Tensor:
        """Return the rows."""
        return rows_TX


WHOLE = WholeBatch()
