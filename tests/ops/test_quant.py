"""Low-bit weights: the stored layout by its definition, the error in dB, what is refused."""

import pytest
import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.quant import (
    MAX_DEPTH,
    QuantisedExperts,
    dequantise,
    integers_of,
    quantise_experts,
    quantised_shapes,
    signal_to_noise_db,
)

# Gaussian weights: 8 bits by the largest of a channel, 4 bits in groups of 64.
LEAST_DB = {8: 42.0, 4: 19.5}
each_width = pytest.mark.parametrize("bits", [8, 4])


def _weights(num_experts: int, width: int, hidden_width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    shapes = (num_experts, 2 * hidden_width, width), (num_experts, width, hidden_width)
    return tuple(torch.randn(shape).to(dtype) for shape in shapes)


def _read_down(experts: QuantisedExperts, expert: int, channel: int, depth: int) -> int:
    """Read the integer of one weight of down, as csrc/quant.h describes the bytes."""
    strip = experts.down[expert, channel // 32, depth // 64]
    row, place = channel % 32, depth % 64
    if experts.bits == 8:
        return int(strip[row, place])
    nibble = int(strip[row, place % 32]) >> (4 if place >= 32 else 0) & 15
    return (nibble if nibble < 8 else nibble - 16) * int(strip[32, row])


@each_width
def test_down_is_read_by_its_definition_when_widths_are_no_multiples(bits: int) -> None:
    experts = quantise_experts(*_weights(2, 40, 70), bits)
    for expert in range(2):
        down = integers_of(experts, expert)[1].integers
        expected = [[_read_down(experts, expert, channel, depth) for depth in range(70)] for channel in range(40)]
        assert down.tolist() == expected


@each_width
def test_gate_and_up_rows_alternate_by_sixteen_when_stored(bits: int) -> None:
    gate_up, down = _weights(1, 64, 48)
    experts = quantise_experts(gate_up, down, bits)
    rows = [16 * half + row for half in (0, 3, 1, 4, 2, 5) for row in range(16)]
    # The same rows as a down matrix of [96, 64].
    as_down = quantise_experts(torch.zeros(1, 128, 96), gate_up[:, rows], bits)
    assert torch.equal(experts.gate_up[0, :3], as_down.down[0, :3])
    assert torch.equal(experts.gate_up_scales[0, :3], as_down.down_scales[0, :3])
    assert not experts.gate_up_scales[0, 3:].any(), "what is beyond the edge is zero"


@each_width
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_stays_below_its_bound_when_weights_are_gaussian(bits: int, dtype: torch.dtype) -> None:
    originals = _weights(3, 256, 128, dtype)
    for original, restored in zip(originals, dequantise(quantise_experts(*originals, bits)), strict=True):
        assert signal_to_noise_db(original, restored).min() > LEAST_DB[bits]


def test_groups_keep_their_resolution_when_one_is_much_larger() -> None:
    gate_up, down = _weights(1, 128, 64)
    gate_up[:, :, :64] *= 8
    restored, _ = dequantise(quantise_experts(gate_up, down, 4))
    assert signal_to_noise_db(gate_up[..., 64:], restored[..., 64:]).min() > LEAST_DB[4] - 2


@each_width
def test_zeros_stay_zeros_when_channels_hold_nothing_else(bits: int) -> None:
    gate_up, down = _weights(1, 128, 64)
    gate_up[0, 5], down[0, 7, 10:] = 0, 0
    restored_gate_up, restored_down = dequantise(quantise_experts(gate_up, down, bits))
    assert not restored_gate_up[0, 5].any()
    assert not restored_down[0, 7, 10:].any()


@each_width
def test_experts_take_their_bytes_when_widths_are_multiples(bits: int) -> None:
    experts = quantise_experts(*_weights(2, 128, 64), bits)
    weights, channels = 2 * 3 * 128 * 64, 2 * (2 * 64 + 128)
    assert experts.num_bytes == weights * (1.0 if bits == 8 else 33 / 64) + 4 * channels
    assert experts.bits == bits


@pytest.mark.parametrize(
    ("gate_up", "down", "bits", "text"),
    [
        (torch.ones(1, 4, 3), torch.ones(1, 3, 2), 3, "weights of 3 bits"),
        (torch.ones(1, 4, 3), torch.ones(1, 3, 2).int(), 8, "down holds torch.int32"),
        (torch.ones(1, 4, 3), torch.ones(3, 2), 8, r"down has the shape \(3, 2\)"),
        (torch.ones(1, 5, 3), torch.ones(1, 3, 2), 8, r"gate_up has the shape \(1, 5, 3\)"),
        (torch.ones(1, 4, 3).double(), torch.ones(1, 3, 2), 8, "gate_up holds float64"),
        (torch.ones(1, 4, 3) * torch.inf, torch.ones(1, 3, 2), 8, "gate_up holds NaN or infinity"),
        (torch.ones(1, 4, 3), torch.full((1, 3, 2), torch.nan), 4, "down holds NaN or infinity"),
        (torch.ones(0, 4, 3), torch.ones(0, 3, 2), 8, "there are no experts"),
        (torch.ones(1, 4, 0), torch.ones(1, 0, 2), 8, "the width of the experts is 0"),
        (torch.ones(1, 2, MAX_DEPTH + 1), torch.ones(1, MAX_DEPTH + 1, 1), 8, "the width of the experts is 131009"),
    ],
)
def test_weights_are_refused_when_they_cannot_be_quantised(gate_up: Tensor, down: Tensor, bits: int, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        quantise_experts(gate_up, down, bits)


@each_width
@pytest.mark.parametrize("widths", [(1, 1), (64, 32), (65, 33), (200, 130)])
def test_shapes_are_told_beforehand_when_widths_are_known(bits: int, widths: tuple[int, int]) -> None:
    experts = quantise_experts(*_weights(2, *widths), bits)
    for field, (shape, dtype) in quantised_shapes(*widths, bits).items():
        tensor = getattr(experts, field)
        assert (tensor.shape[1:], tensor.dtype) == (shape, dtype)
