"""Blocks of rows in another order."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Transposition:
    """Blocks that stand as the entries of a matrix do, row by row, are put as those of its transpose.

    Args:
        sizes: rows of each block, as a matrix.
    """

    def __init__(self, sizes: Sequence[Sequence[int]]) -> None:
        num_columns = len(sizes[0])
        places = range(len(sizes) * num_columns)
        self._sizes = [size for row in sizes for size in row]
        self._order = [place for column in range(num_columns) for place in places[column::num_columns]]
        self._ordered_sizes = [self._sizes[place] for place in self._order]
        self._inverse = sorted(places, key=self._order.__getitem__)

    def apply(self, rows: Tensor) -> Tensor:
        """Return the rows with their blocks in the order of the transpose; differentiable."""
        blocks = rows.split(self._sizes)
        return torch.cat([blocks[place] for place in self._order])

    def undo(self, rows: Tensor) -> Tensor:
        """Return the rows with their blocks as they stood; differentiable."""
        blocks = rows.split(self._ordered_sizes)
        return torch.cat([blocks[place] for place in self._inverse])
