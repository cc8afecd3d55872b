"""How fast this machine multiplies matrices: what a long prompt, whose cost is arithmetic, is measured against."""

import time

import torch

# A prompt of some length by a weight, both of which stay in the processor's caches.
_ROWS, _WIDTH = 512, 1024


def measure_arithmetic_rate(dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Return multiplications and additions a second, each counted, of the fastest product in that time."""
    rows, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    torch.mm(rows, weight)
    least, end = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        torch.mm(rows, weight)
        least = min(least, time.perf_counter() - began)
    return 2 * _ROWS * _WIDTH * _WIDTH / least
