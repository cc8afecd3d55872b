"""The one table of tolerances: how far two ways of computing the same thing may lie apart."""

import torch
from torch import Tensor

# Largest relative error of a result computed in each dtype. float32 allows a different order of summation, no
# more; the narrow ones allow a few roundings of their own.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference over the largest magnitude expected; 0 where both are empty or equal.

    Args:
        found, expected: of one shape, any floating dtypes; compared in float64. NaN gives NaN, which is within
            no tolerance.
    """
    assert found.shape == expected.shape, f"shapes {tuple(found.shape)} and {tuple(expected.shape)} differ"
    if found.numel() == 0 or torch.equal(found, expected):
        return 0.0
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Tell whether two results agree within the tolerance of the dtype of the first."""
    return relative_error(found, expected) <= TOLERANCES[found.dtype]
