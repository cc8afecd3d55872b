"""Rotary embedding: turns against complex numbers, and the stretching rules at their ends.

The tables of llama3 and yarn are also held against transformers, in tests/models/test_parity.py.
"""

import math

import pytest
import torch

from moesaic.config.model import RopeScaling
from moesaic.ops.reference import rope as oracle
from moesaic.ops.rope import build_frequencies, rotate, rotation
from moesaic.testing.tolerance import is_close


@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_rotate_equals_complex_multiplication_when_positions_are_any(scale: float) -> None:
    x_BSHC, positions_BS = torch.randn(2, 3, 2, 6), torch.tensor([[0, 1, 2], [7, 0, 31]])
    frequencies, _ = build_frequencies(6, 100.0, None)
    found = rotate(x_BSHC, *rotation(positions_BS, frequencies, scale, torch.float32))
    assert is_close(found, oracle.rotate(x_BSHC, positions_BS, frequencies, scale))


def test_rotate_changes_nothing_when_all_positions_are_zero() -> None:
    x_BSHC = torch.randn(1, 2, 2, 4)
    frequencies, scale = build_frequencies(4, 10_000.0, None)
    assert torch.equal(rotate(x_BSHC, *rotation(torch.zeros(1, 2), frequencies, scale, torch.float32)), x_BSHC)


def test_scores_depend_on_distance_alone_when_both_sides_are_rotated() -> None:
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    frequencies, _ = build_frequencies(8, 100.0, None)

    def score(query_at: int, key_at: int) -> float:
        turned = [
            rotate(x, *rotation(torch.tensor([[at]]), frequencies, 1.0, torch.float64))
            for x, at in ((query, query_at), (key, key_at))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(9, 4) == pytest.approx(score(25, 20), rel=1e-5)
    assert score(9, 4) != pytest.approx(score(9, 5), rel=1e-2)


def test_frequencies_fall_from_one_when_there_is_no_scaling() -> None:
    frequencies, scale = build_frequencies(4, 10_000.0, None)
    assert is_close(frequencies, torch.tensor([1.0, 0.01]))
    assert scale == 1.0


def test_frequencies_are_divided_when_scaling_is_linear() -> None:
    plain, _ = build_frequencies(8, 500.0, None)
    scaled, scale = build_frequencies(8, 500.0, RopeScaling(rope_type="linear", factor=4.0))
    assert torch.equal(scaled, plain / 4)
    assert scale == 1.0


@pytest.mark.parametrize("rope_type", ["llama3", "yarn"])
def test_fast_channels_are_kept_and_slow_ones_stretched_when_scaling_is(rope_type: str) -> None:
    scaling = RopeScaling(rope_type=rope_type, factor=8.0, original_max_position_embeddings=8192)
    plain, _ = build_frequencies(128, 500_000.0, None)
    scaled, _ = build_frequencies(128, 500_000.0, scaling)
    assert is_close(scaled[:4], plain[:4])
    assert is_close(scaled[-4:], plain[-4:] / 8)
    assert bool(((scaled <= plain * (1 + 1e-6)) & (scaled >= plain / 8 * (1 - 1e-6))).all())


@pytest.mark.parametrize(
    ("given", "factor", "expected"),
    [(None, 4.0, 0.1 * math.log(4.0) + 1), (None, 0.5, 1.0), (1.5, 4.0, 1.5)],
)
def test_rotation_scale_follows_yarn_when_attention_factor_is(
    given: float | None, factor: float, expected: float
) -> None:
    scaling = RopeScaling(rope_type="yarn", factor=factor, original_max_position_embeddings=64, attention_factor=given)
    assert build_frequencies(8, 10_000.0, scaling)[1] == expected
