"""Layouts of records."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.memory.page import ALIGNMENT, PageLayout

SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8])


@given(shapes=SHAPES, dtype=DTYPES, num_slots=st.integers(1, 3))
def test_fields_are_apart_and_aligned_when_laid_out(
    shapes: list[tuple[int, int]], dtype: torch.dtype, num_slots: int
) -> None:
    layout = PageLayout.of({str(index): (shape, dtype) for index, shape in enumerate(shapes)})
    assert layout.num_bytes % ALIGNMENT == 0
    records = torch.zeros(num_slots, layout.num_bytes, dtype=torch.uint8)
    for index, view in enumerate(layout.views(records).values()):
        assert view.shape == (num_slots, *shapes[index])
        assert layout.fields[str(index)].start % 64 == 0
        assert not view.any(), "fields do not overlap"
        view.fill_(1)
    written = sum(field.num_bytes for field in layout.fields.values())
    assert int(records.count_nonzero()) <= num_slots * written
    assert all(bool((view == 1).all()) for view in layout.views(records).values())
