"""Grouped-query self-attention with rotary positions and the options of the supported families."""

import torch
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.nn.cache import KVCache
from moesaic.nn.linear import Linear
from moesaic.nn.norm import RmsNorm
from moesaic.ops.attention import AttentionMask, attention
from moesaic.ops.linear import linear
from moesaic.ops.rope import rotate


class SelfAttention(nn.Module):
    """Project, norm and clip where asked, rotate, attend, project back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.channels, self.clip = config.head_channels, config.clip_qkv
        self.norm_over_width = config.qk_norm == "width"
        query_width = config.num_attention_heads * self.channels
        kv_width = config.kv_heads * self.channels
        self.query = Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.key = Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.value = Linear(config.hidden_size, kv_width, bias=config.attention_bias)
        self.output = Linear(query_width, config.hidden_size, bias=config.attention_output_bias)
        self._widths = [query_width, kv_width, kv_width]
        self._joined: tuple[Tensor, Tensor | None] | None = None  # weight and bias of query, key and value
        self.query_norm: RmsNorm | None = None
        self.key_norm: RmsNorm | None = None
        if config.qk_norm != "none":
            widths = (query_width, kv_width) if self.norm_over_width else (self.channels, self.channels)
            self.query_norm = RmsNorm(widths[0], config.rms_norm_eps)
            self.key_norm = RmsNorm(widths[1], config.rms_norm_eps)

    def forward(
        self,
        hidden_BSD: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: AttentionMask,
        positions_BS: Tensor,
        cache: KVCache | None,
    ) -> Tensor:
        """Map [B, S, D] to [B, S, D]; with a cache, keys and values of earlier positions take part."""
        query, key, value = self._project(hidden_BSD)
        query_BSHC = rotate(self._heads(query, self.query_norm), *rotation)
        key_BSGC = rotate(self._heads(key, self.key_norm), *rotation)
        value_BSGC = self._heads(value, None)
        if cache is None:
            key_BGZC, value_BGZC = key_BSGC.transpose(1, 2), value_BSGC.transpose(1, 2)
        else:
            key_BGZC, value_BGZC = cache.write(self.layer, positions_BS, key_BSGC, value_BSGC)
        return self.output(attention(query_BSHC, key_BGZC, value_BGZC, mask).flatten(2))

    @torch.no_grad()  # a gradient would keep the former weights
    def join_projections(self) -> None:
        """Make the weights of query, key and value parts of one, whose single product a few tokens wait for less.

        For weights that stay as they are. They take no more memory than before. Projections of 8 bits stay apart.
        """
        parts = [part for part in (self.query, self.key, self.value) if isinstance(part, Linear)]
        if len(parts) < len(self._widths):
            return
        weight = torch.cat([part.weight for part in parts])
        bias = None if self.query.bias is None else torch.cat([part.bias for part in parts])
        for part, rows in zip(parts, weight.split(self._widths), strict=True):
            part.weight = nn.Parameter(rows, requires_grad=False)
        if bias is not None:
            for part, values in zip(parts, bias.split(self._widths), strict=True):
                part.bias = nn.Parameter(values, requires_grad=False)
        self._joined = weight, bias

    def _project(self, hidden_BSD: Tensor) -> tuple[Tensor, ...]:
        if self._joined is None:
            return self.query(hidden_BSD), self.key(hidden_BSD), self.value(hidden_BSD)
        return linear(hidden_BSD, *self._joined).split(self._widths, dim=-1)

    def _heads(self, projected: Tensor, norm: RmsNorm | None) -> Tensor:
        """Norm and clip a projection [B, S, heads C], and split it into heads: [B, S, heads, C]."""
        if norm is not None and self.norm_over_width:
            projected = norm(projected)
        if self.clip is not None:
            projected = projected.clamp(-self.clip, self.clip)
        heads = projected.unflatten(-1, (-1, self.channels))
        return norm(heads) if norm is not None and not self.norm_over_width else heads
