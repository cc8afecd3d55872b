"""The decoder: embedding, layers, final norm.

In a pre-gated model each mixture routes by the normed hidden states that the experts of the mixture before it read,
with its own router's weights; the first, by those that its own experts read. Its choice then waits while the mixture
before it, attention and any dense layers in between are computed, time enough to bring the chosen experts (Hwang et
al., 2023, "Pre-gated MoE").

    layer              0 mixture        1 dense     2 mixture        3 mixture
    its experts read   x0                           x2               x3
    its router reads   x0                           x0               x2
"""

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moesaic.config.model import ModelConfig
from moesaic.nn.attention import SelfAttention
from moesaic.nn.cache import KVCache
from moesaic.nn.mlp import GatedMlp
from moesaic.nn.moe.layer import MoELayer
from moesaic.nn.moe.load import ExpertLoad
from moesaic.nn.moe.router import Routing
from moesaic.nn.norm import RmsNorm
from moesaic.nn.rows import OWN, Rows
from moesaic.ops.attention import AttentionMask, build_mask
from moesaic.ops.rope import build_frequencies, rotation


@dataclass(frozen=True)
class DecoderOutput:
    """What the decoder returns.

    Attributes:
        hidden_BSD: after the final norm.
        losses: unscaled auxiliary losses by name, each the mean over MoE layers; empty for a dense model.
        loads: choices per expert, by layer index.
    """

    hidden_BSD: Tensor
    losses: dict[str, Tensor]
    loads: dict[int, ExpertLoad]


@dataclass(frozen=True)
class LayerOutput:
    """What a layer returns.

    Attributes:
        hidden_BSD: the residual stream.
        losses: of the mixture; empty in a dense layer.
        load: of the mixture.
        routing: the choice in the next mixture of a pre-gated model, once it is made.
    """

    hidden_BSD: Tensor
    losses: dict[str, Tensor]
    load: ExpertLoad | None
    routing: Routing | None


class DecoderLayer(nn.Module):
    """Attention and an MLP or a mixture of experts, each normed before and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = SelfAttention(config, layer)
        self.mlp_norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        is_moe = config.is_moe_layer(layer)
        self.moe = MoELayer(config) if is_moe else None
        self.mlp = None if is_moe else GatedMlp(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        hidden_BSD: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: AttentionMask,
        positions_BS: Tensor,
        valid_BS: Tensor | None,
        cache: KVCache | None,
        routing: Routing | None,
        next_moe: MoELayer | None,
    ) -> LayerOutput:
        """Attend, then mix; a dense layer hands on the routing it is given. The last two are as for `MoELayer`."""
        attended_BSD = self.attention(self.attention_norm(hidden_BSD), rotary, mask, positions_BS, cache)
        hidden_BSD = hidden_BSD + attended_BSD
        normed_BSD = self.mlp_norm(hidden_BSD)
        if self.mlp is not None:
            return LayerOutput(hidden_BSD + self.mlp(normed_BSD), {}, None, routing)
        assert self.moe is not None, "a layer has an MLP or a mixture"
        mixed = self.moe(normed_BSD, valid_BS, routing, next_moe)
        return LayerOutput(hidden_BSD + mixed.hidden_BSD, mixed.losses, mixed.load, mixed.next_routing)


class Decoder(nn.Module):
    """Token ids to hidden states.

    Attributes:
        compute_dtype: dtype of the activations; None: that of the weights.
        recompute: redo each layer's forward in the backward pass instead of keeping its activations.
        rows: whose sequences attention computes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.recompute = False
        self.rows: Rows = OWN
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        ids_BS: Tensor,
        positions_BS: Tensor | None = None,
        document_ids_BS: Tensor | None = None,
        valid_BS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> DecoderOutput:
        """Run all layers.

        Args:
            ids_BS: int64 token ids; padding stands at the end of a row.
            positions_BS: position of each token in its text; None: 0, 1, 2 ... from the cache's length on.
            document_ids_BS: packed sequences: attention stays within a document.
            valid_BS: bool, False at padding.
            cache: keys and values so far; the new ones are stored, and lengths grow by the valid tokens.
        """
        if positions_BS is None:
            start_B1 = 0 if cache is None else cache.lengths_B.unsqueeze(1)
            positions_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device).unsqueeze(0) + start_B1
            positions_BS = positions_BS.expand_as(ids_BS)
        hidden_BSD = self.embedding(ids_BS)
        hidden_BSD = hidden_BSD.to(self.compute_dtype or hidden_BSD.dtype)
        attended_BS, document_ids_BS = self.rows.meet(positions_BS, document_ids_BS)
        rotary = self._rotation(attended_BS, hidden_BSD.dtype)
        masks = self._masks(attended_BS, document_ids_BS, cache)

        all_losses: list[dict[str, Tensor]] = []
        loads: dict[int, ExpertLoad] = {}
        routing: Routing | None = None
        for index, layer in enumerate(self.layers):
            inputs = (
                hidden_BSD,
                rotary,
                masks[self.config.window_of_layer(index)],
                positions_BS,
                valid_BS,
                cache,
                routing,
                self._next_moe(index),
            )
            if self.recompute and self.training:
                # Without reentry, gradients also reach the tensors inside of a routing.
                out: LayerOutput = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                out = layer(*inputs)
            hidden_BSD, routing = out.hidden_BSD, out.routing
            if out.load is not None:
                all_losses.append(out.losses)
                loads[index] = out.load
        if cache is not None:
            cache.lengths_B += ids_BS.shape[1] if valid_BS is None else valid_BS.sum(1)
        names = all_losses[0] if all_losses else {}
        losses = {name: torch.stack([each[name] for each in all_losses]).mean() for name in names}
        return DecoderOutput(self.norm(hidden_BSD), losses, loads)

    def _next_moe(self, layer: int) -> MoELayer | None:
        """Return the mixture that routes by what a layer's experts read; None unless pre-gated, and for the last."""
        if not self.config.pregated:
            return None
        later = (each.moe for each in islice(self.layers, layer + 1, None))
        return next((moe for moe in later if isinstance(moe, MoELayer)), None)

    def _rotation(self, positions_BS: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        config = self.config
        frequencies, scale = build_frequencies(config.head_channels, config.rope_theta, config.rope_scaling)
        return rotation(positions_BS, frequencies.to(positions_BS.device), scale, dtype)

    def _masks(
        self, positions_BS: Tensor, document_ids_BS: Tensor | None, cache: KVCache | None
    ) -> dict[int | None, AttentionMask]:
        """Build one mask for each window size among the layers."""
        length = positions_BS.shape[1]
        if cache is None:
            # Positions may restart within a packed sequence; a mask counts keys, not positions.
            indices_BS = torch.arange(length, device=positions_BS.device).unsqueeze(0)
            num_keys = length
        else:
            indices_BS, num_keys = positions_BS, int(positions_BS.max()) + 1
        windows = {self.config.window_of_layer(layer) for layer in range(self.config.num_hidden_layers)}
        return {
            window: build_mask(indices_BS, num_keys, window, document_ids_BS, cached=cache is not None)
            for window in windows
        }
