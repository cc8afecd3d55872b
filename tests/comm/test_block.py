"""Blocks of rows that are put in another order."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.comm.block import Transposition


@given(st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_blocks_are_those_of_the_transpose_and_come_back_when_undone(height: int, width: int, drawn) -> None:  # type: ignore[no-untyped-def]
    sizes = [[drawn.choice([0, 0, 1, 3]) for _ in range(width)] for _ in range(height)]
    rows = [
        [row, column, index] for row in range(height) for column in range(width) for index in range(sizes[row][column])
    ]
    expected = sorted(rows, key=lambda row: (row[1], row[0], row[2]))
    tensor, transposition = torch.tensor(rows).view(-1, 3), Transposition(sizes)
    found = transposition.apply(tensor)
    assert found.tolist() == expected
    assert torch.equal(transposition.undo(found), tensor)
