"""Rotary position embedding (Su et al., 2021, "RoFormer", section 3.2), halves layout.

Channel c of the first half turns together with channel c of the second half. The frequency tables follow
the published stretching rules: linear (Chen et al., 2023), llama3 (Llama 3.1 release) and YaRN (Peng et al.,
2023, equations 22 to 25).
"""

import math

import torch
from torch import Tensor

from moesaic.config.model import RopeScaling


def build_frequencies(channels: int, theta: float, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """Return the angle per position of each channel pair, [C / 2] float32, and the scale of the rotation."""
    inverse = 1.0 / theta ** (torch.arange(0, channels, 2, dtype=torch.int64).float() / channels)
    if scaling is None:
        return inverse, 1.0
    if scaling.rope_type == "linear":
        return inverse / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return _llama3(inverse, scaling), 1.0
    return _yarn(inverse, channels, theta, scaling)


def rotation(positions_BS: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of each position, each [B, S, 1, C / 2], computed in float32."""
    angles = positions_BS[..., None].float() * frequencies
    return (angles.cos() * scale).to(dtype).unsqueeze(2), (angles.sin() * scale).to(dtype).unsqueeze(2)


def rotate(x_BSHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every channel pair by its position's angle; the shape stays."""
    first, second = x_BSHC.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _llama3(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    original = scaling.original_max_position_embeddings
    assert original is not None, "checked by RopeScaling"
    wavelength = 2 * math.pi / inverse
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * inverse / scaling.factor + smooth * inverse


def _yarn(inverse: Tensor, channels: int, theta: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    original = scaling.original_max_position_embeddings
    assert original is not None, "checked by RopeScaling"

    def channel_of(rotations: float) -> float:
        return channels * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(channel_of(scaling.beta_fast)), 0)
    high = min(math.ceil(channel_of(scaling.beta_slow)), channels - 1)
    ramp = ((torch.arange(channels // 2).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    frequencies = inverse / scaling.factor * ramp + inverse * (1 - ramp)
    default = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return frequencies, scaling.attention_factor or default
