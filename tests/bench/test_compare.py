"""A comparison goes red on one wrong row, and on what is not a number."""

import pytest
import torch

from moesaic.bench.compare import check_equal
from moesaic.errors import MoesaicError


@pytest.mark.parametrize(("dtype", "close", "far"), [(torch.float32, 3e-6, 3e-5), (torch.bfloat16, 8e-3, 4e-2)])
def test_one_row_decides_when_it_is_too_far_off(dtype: torch.dtype, close: float, far: float) -> None:
    expected = torch.ones(8, 4, dtype=dtype)
    for error in (close, far):
        found = expected.clone()
        found[3] += error
        if error == close:
            check_equal("x", found, expected)
        else:
            with pytest.raises(MoesaicError, match=r"x differs by .*e-0\d relative, more than \de-0\d"):
                check_equal("x", found, expected)


def test_row_near_zero_is_held_against_the_mean_when_it_is_compared() -> None:
    expected = torch.ones(8, 4)
    expected[0] = 0
    found = expected.clone()
    found[0] = 1e-6
    check_equal("x", found, expected)


def test_nan_is_equal_to_nothing_when_compared() -> None:
    found = torch.full((2, 2), torch.nan)
    with pytest.raises(MoesaicError, match="x differs by nan"):
        check_equal("x", found, torch.ones(2, 2))


def test_limit_is_the_given_one_when_a_candidate_brings_its_own() -> None:
    check_equal("x", torch.full((2, 2), 1.05), torch.ones(2, 2), limit=0.1)
