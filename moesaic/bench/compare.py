"""Results are compared before anything is timed: a timing of unequal work means nothing."""

import torch
from torch import Tensor

from moesaic.errors import MoesaicError

# Different orders of summation; in bfloat16 a rounding of each intermediate result.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@torch.no_grad()
def check_equal(name: str, found: Tensor, expected: Tensor, limit: float | None = None) -> None:
    """Compare row by row (the last dimension): the error's norm over that of the row, or of the mean row if larger.

    Args:
        name: of the result, for the error.
        found, expected: of one shape and dtype.
        limit: of the relative error; None: that of the dtype.

    Raises:
        MoesaicError: some row differs by more, or is not a number.
    """
    limit = LIMITS[expected.dtype] if limit is None else limit
    norms = torch.linalg.vector_norm(expected, dim=-1, dtype=torch.float32)
    errors = torch.linalg.vector_norm(found - expected, dim=-1, dtype=torch.float32)
    error = float((errors / norms.clamp_min(norms.mean())).max())
    if not error < limit:
        raise MoesaicError(
            f"{name} differs by {error:.2e} relative, more than {limit:.0e}", "a timing of unequal work means nothing"
        )
