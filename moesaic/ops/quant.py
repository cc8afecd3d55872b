"""Weights of 8 or 4 bits, of experts and of single matrices: made, stored, read back.

A weight is an integer times the float32 scale of its channel, a row of gate_up or down. Of 8 bits it is the nearest of
-127..127. Of 4 bits it is nibble times multiplier, -8..7 times 1..16, with one multiplier for each group of 64 along
the row: groups have steps of their own, and still every product is one of int8. 4 bits take 4.125 bits a weight.

Stored are the blocks that the kernels multiply (csrc/quant.h), 32 channels by 64 depths, zeros beyond the edges:

    down        rows 0..31 | 32..63 | ...    (so does a matrix alone)
    gate_up     gate rows 0..15, up rows 0..15 | gate rows 16..31, up rows 16..31 | ...
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.errors import UnsupportedError
from moesaic.ops.tensor import check_tensor

GROUP = 64
_BLOCK, _HALF = 32, 16
_MAX_MULTIPLIER = 16
# Steps finer than what the largest weight of the group asks for cut it off and serve the others; so many are tried.
_FINER_STEPS = 3
# Of tokens that such experts are computed for.
TOKEN_DTYPES = (torch.float32, torch.bfloat16)
# An int32 holds the sum of so many products of int8.
MAX_DEPTH = 2**17 - 64
# Of a matrix alone, that are rounded or widened at a time: a table of words has so many that all at once would take
# several times its memory. A multiple of what blocks are padded to.
_CHANNELS_TOGETHER = 2048


@dataclass(frozen=True)
class QuantisedExperts:
    """The experts of a layer with low-bit weights.

    Attributes:
        gate_up: [E, blocks, strips, 32, 64] int8; of 4 bits [E, blocks, strips, 33, 32] uint8: 32 rows of nibbles,
            depth i low and 32 + i high, and their multipliers.
        gate_up_scales: [E, blocks, 32] float32.
        down, down_scales: likewise.
        width, hidden_width: D and F.
    """

    gate_up: Tensor
    gate_up_scales: Tensor
    down: Tensor
    down_scales: Tensor
    width: int
    hidden_width: int

    @property
    def num_experts(self) -> int:
        """Return E."""
        return len(self.gate_up)

    @property
    def bits(self) -> int:
        """Return 8 or 4."""
        return 8 if self.gate_up.dtype == torch.int8 else 4

    @property
    def num_bytes(self) -> int:
        """Return what the weights and their scales take."""
        return sum(each.nbytes for each in (self.gate_up, self.gate_up_scales, self.down, self.down_scales))


def quantise_experts(gate_up: Tensor, down: Tensor, bits: int) -> QuantisedExperts:
    """Round weights to 8 or 4 bits.

    Args:
        gate_up: [E, 2F, D] of any floating dtype, on any device: gate rows, then up rows.
        down: [E, D, F] of the same.
        bits: 8 or 4.

    Raises:
        UnsupportedError: a shape or dtype is another, a weight is not finite, there is no expert, or a width is 0 or
            more than `MAX_DEPTH`.
    """
    if bits not in (8, 4):
        raise UnsupportedError(f"weights of {bits} bits were asked for", "ask for 8 or 4")
    if not down.is_floating_point():
        raise UnsupportedError(f"down holds {down.dtype}", "give it in a floating dtype")
    check_tensor("down", down, (None, None, None))
    num_experts, width, hidden_width = down.shape
    check_tensor("gate_up", gate_up, (num_experts, 2 * hidden_width, width), down.dtype, down.device)
    if num_experts == 0:
        raise UnsupportedError("there are no experts", "give one or more")
    for name, size in (("width", width), ("hidden width", hidden_width)):
        if not 0 < size <= MAX_DEPTH:
            raise UnsupportedError(f"the {name} of the experts is {size}", f"quantise widths of 1 to {MAX_DEPTH}")
    return QuantisedExperts(
        *_quantise_all("gate_up", map(_interleave, gate_up), bits),
        *_quantise_all("down", (_pad(each, 2 * _BLOCK) for each in down), bits),
        width,
        hidden_width,
    )


def check_quantised(name: str, experts: QuantisedExperts) -> None:
    """Check that blocks and scales which somebody put together, called `name` by the caller, are those of the widths.

    Raises:
        UnsupportedError: one has another shape, dtype or device, or the experts are not whole in it.
    """
    for field, (shape, dtype) in quantised_shapes(experts.width, experts.hidden_width, experts.bits).items():
        tensor = getattr(experts, field)
        check_tensor(f"{name}.{field}", tensor, (experts.num_experts, *shape), dtype, experts.gate_up.device)


def quantised_shapes(width: int, hidden_width: int, bits: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of each field of one of `QuantisedExperts`; all of them have E before the shape."""
    in_strips, mid_strips = -(-width // GROUP), -(-hidden_width // GROUP)
    dtype = torch.int8 if bits == 8 else torch.uint8
    strip = (_BLOCK, GROUP) if bits == 8 else (_BLOCK + 1, GROUP // 2)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for field, blocks, strips in (("gate_up", 4 * mid_strips, in_strips), ("down", 2 * in_strips, mid_strips)):
        shapes[field] = (blocks, strips, *strip), dtype
        shapes[f"{field}_scales"] = (blocks, _BLOCK), torch.float32
    return shapes


def dequantise(experts: QuantisedExperts, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return gate_up [E, 2F, D] and down [E, D, F] as floats."""
    device, width, hidden_width = experts.gate_up.device, experts.width, experts.hidden_width
    gate_up = torch.empty(experts.num_experts, 2 * hidden_width, width, dtype=dtype, device=device)
    down = torch.empty(experts.num_experts, width, hidden_width, dtype=dtype, device=device)
    for expert in range(experts.num_experts):
        for to, matrix in zip((gate_up, down), integers_of(experts, expert), strict=True):
            to[expert] = matrix.integers * matrix.scales[:, None]
    return gate_up, down


def signal_to_noise_db(original: Tensor, restored: Tensor) -> Tensor:
    """Return [E]: ten times the decimal logarithm of the energy of an expert's weights over that of their error."""
    signal, noise = original.double().flatten(1), (restored.double() - original.double()).flatten(1)
    return 10 * torch.log10(signal.square().sum(1) / noise.square().sum(1))


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix [channels, depth] with weights of 8 bits, by itself.

    Attributes:
        blocks: [blocks, strips, 32, 64] int8.
        scales: [blocks, 32] float32.
        channels, depth: of the matrix.
    """

    blocks: Tensor
    scales: Tensor
    channels: int
    depth: int


def quantise_matrix(matrix: Tensor) -> QuantisedMatrix:
    """Round a matrix [channels, depth] of any floating dtype to 8 bits.

    Raises:
        UnsupportedError: the shape or dtype is another, a weight is not finite, there is no channel, or the depth
            is 0 or more than `MAX_DEPTH`.
    """
    check_tensor("matrix", matrix, (None, None))
    if not matrix.is_floating_point():
        raise UnsupportedError(f"matrix holds {matrix.dtype}", "give it in a floating dtype")
    channels, depth = matrix.shape
    if channels == 0 or not 0 < depth <= MAX_DEPTH:
        raise UnsupportedError(
            f"matrix has the shape ({channels}, {depth})", f"quantise one or more rows of 1 to {MAX_DEPTH}"
        )
    parts = [_quantise("matrix", _pad(rows, 2 * _BLOCK), 8) for rows in matrix.split(_CHANNELS_TOGETHER)]
    blocks, scales = (torch.cat(each) for each in zip(*parts, strict=True))
    return QuantisedMatrix(blocks, scales, channels, depth)


def quantised_matrix_shapes(channels: int, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of blocks and scales of a matrix [channels, depth]."""
    shapes = quantised_shapes(channels, depth, 8)
    return shapes["down"][0], shapes["down_scales"][0]


def matrix_to_noise_db(original: Tensor, rounded: QuantisedMatrix) -> float:
    """Return `signal_to_noise_db` of a matrix; infinite where nothing was lost."""
    signal = noise = 0.0
    for rows, part in zip(original.split(_CHANNELS_TOGETHER), integer_parts(rounded), strict=True):
        restored = part.integers * part.scales[:, None]
        signal += rows.double().square().sum().item()
        noise += (restored.double() - rows.double()).square().sum().item()
    return 10 * math.log10(signal / noise) if noise > 0 else math.inf


@dataclass(frozen=True)
class IntegerMatrix:
    """A matrix, or some of its channels: integers [channels, depth] as int8 and float32 scales [channels]."""

    integers: Tensor
    scales: Tensor


def integer_parts(matrix: QuantisedMatrix) -> Iterator[IntegerMatrix]:
    """Read the integers of a matrix, some channels after others."""
    blocks_together = _CHANNELS_TOGETHER // _BLOCK
    parts = zip(matrix.blocks.split(blocks_together), matrix.scales.split(blocks_together), strict=True)
    left = matrix.channels
    for blocks, scales in parts:
        yield IntegerMatrix(_flatten(blocks)[:left, : matrix.depth], scales.flatten()[:left])
        left -= min(left, _CHANNELS_TOGETHER)


def integers_of(experts: QuantisedExperts, expert: int) -> tuple[IntegerMatrix, IntegerMatrix]:
    """Read the integers of an expert's gate_up, [2F, D], and down, [D, F]."""
    D, F = experts.width, experts.hidden_width
    gate_up, scales = _flatten(experts.gate_up[expert]), experts.gate_up_scales[expert]
    # [blocks, 2, 16]: the halves of a block are gate and up.
    halves = gate_up.view(-1, 2, _HALF, gate_up.shape[1]).transpose(0, 1).flatten(1, 2)[:, :F, :D]
    half_scales = scales.view(-1, 2, _HALF).transpose(0, 1).flatten(1)[:, :F]
    down = _flatten(experts.down[expert])[:D, :F]
    return (
        IntegerMatrix(halves.flatten(0, 1), half_scales.flatten()),
        IntegerMatrix(down, experts.down_scales[expert].flatten()[:D]),
    )


def _quantise_all(name: str, matrices: Iterable[Tensor], bits: int) -> tuple[Tensor, Tensor]:
    blocks, scales = zip(*(_quantise(name, matrix, bits) for matrix in matrices), strict=True)
    return torch.stack(blocks), torch.stack(scales)


def _quantise(name: str, matrix: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantise padded rows; return blocks and scales."""
    most = matrix.abs().amax(1)
    if not bool(most.isfinite().all()):
        raise UnsupportedError(f"{name} holds NaN or infinity", "quantise finite weights")
    if bits == 8:
        scales = most / 127
        blocks = _to_blocks((matrix / _nonzero(scales)[:, None]).round().to(torch.int8))
        return blocks, scales.view(-1, _BLOCK)
    nibbles, multipliers = _choose_nibbles(matrix, most / (7 * _MAX_MULTIPLIER))
    products = (nibbles * multipliers[..., None]).flatten(1)
    # The scale that fits the chosen integers best.
    scales = (products * matrix).sum(1) / products.square().sum(1).clamp_min(1)
    values = _to_blocks(nibbles.flatten(1).to(torch.int16))
    packed = (values[..., : GROUP // 2] & 15) | (values[..., GROUP // 2 :] & 15) << 4
    by_strip = multipliers.view(-1, _BLOCK, multipliers.shape[1]).transpose(1, 2).unsqueeze(2)
    return torch.cat([packed, by_strip], dim=2).to(torch.uint8), scales.view(-1, _BLOCK)


def _choose_nibbles(matrix: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return nibbles [C, groups, 64] and multipliers [C, groups], those of the least squared error."""
    groups = matrix.view(len(matrix), -1, GROUP) / _nonzero(scales)[:, None, None]
    coarsest = (groups.abs().amax(2) / 7).ceil().clamp(1, _MAX_MULTIPLIER)
    best, least = coarsest, torch.full_like(coarsest, torch.inf)
    for finer in range(_FINER_STEPS + 1):
        multipliers = (coarsest - finer).clamp_min(1)
        error = (_nibbles(groups, multipliers) * multipliers[..., None] - groups).square().sum(2)
        best, least = torch.where(error < least, multipliers, best), torch.minimum(error, least)
    return _nibbles(groups, best), best


def _nibbles(groups: Tensor, multipliers: Tensor) -> Tensor:
    return (groups / multipliers[..., None]).round().clamp(-8, 7)


def _nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, scales, 1.0)


def _interleave(gate_up: Tensor) -> Tensor:
    """Put 16 up rows after every 16 gate rows."""
    gate, up = (_pad(half, 2 * _BLOCK).unflatten(0, (-1, _HALF)) for half in gate_up.chunk(2))
    return torch.stack([gate, up], dim=1).flatten(0, 2)


def _pad(matrix: Tensor, channels: int) -> Tensor:
    """Return float32 with zeros up to a multiple of `channels` and of the group."""
    return functional.pad(matrix.float(), (0, -matrix.shape[1] % GROUP, 0, -matrix.shape[0] % channels))


def _to_blocks(matrix: Tensor) -> Tensor:
    """[C, L] as [C / 32, L / 64, 32, 64]."""
    return matrix.view(len(matrix) // _BLOCK, _BLOCK, -1, GROUP).transpose(1, 2)


def _flatten(blocks: Tensor) -> Tensor:
    """Return the integers of blocks as [channels, depth]."""
    if blocks.dtype == torch.uint8:
        rows = blocks[:, :, :_BLOCK].to(torch.int16)
        nibbles = torch.cat([rows & 15, rows >> 4], dim=-1)
        blocks = ((nibbles ^ 8) - 8) * blocks[:, :, _BLOCK].unsqueeze(-1).to(torch.int16)
    return blocks.transpose(1, 2).reshape(len(blocks) * _BLOCK, -1).to(torch.int8)
