"""The rate of matrix products, from their size and the clock."""

from itertools import chain, repeat
from types import SimpleNamespace

import pytest
import torch

from moesaic.hw import arithmetic as room
from moesaic.hw.arithmetic import measure_arithmetic_rate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_is_positive_when_measured(dtype: torch.dtype) -> None:
    assert measure_arithmetic_rate(dtype, seconds=0.01) > 0


def test_fastest_product_counts_when_products_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    # Until 10 s have passed: products of 2 s and of half a second.
    clock = chain([0.0, 0.0, 2.0, 3.0, 3.5], repeat(10.0))
    monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert measure_arithmetic_rate(torch.float32, seconds=10.0) == 2 * 512 * 1024 * 1024 / 0.5
