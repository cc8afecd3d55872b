"""The decoder: embedding, layers, final norm."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from moesaic.config.model import ModelConfig
from moesaic.nn.attention import SelfAttention
from moesaic.nn.cache import KVCache
from moesaic.nn.mlp import GatedMlp
from moesaic.nn.moe.layer import MoELayer
from moesaic.nn.moe.load import ExpertLoad
from moesaic.nn.norm import RmsNorm
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
    ) -> tuple[Tensor, dict[str, Tensor], ExpertLoad | None]:
        """Return the new hidden states, and the losses and load of the mixture if there is one."""
        attended_BSD = self.attention(self.attention_norm(hidden_BSD), rotary, mask, positions_BS, cache)
        hidden_BSD = hidden_BSD + attended_BSD
        normed_BSD = self.mlp_norm(hidden_BSD)
        if self.mlp is not None:
            return hidden_BSD + self.mlp(normed_BSD), {}, None
        assert self.moe is not None, "a layer has an MLP or a mixture"
        mixed = self.moe(normed_BSD, valid_BS)
        return hidden_BSD + mixed.hidden_BSD, mixed.losses, mixed.load


class Decoder(nn.Module):
    """Token ids to hidden states.

    Attributes:
        compute_dtype: dtype of the activations; None: that of the weights.
        recompute: redo each layer's forward in the backward pass instead of keeping its activations.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.recompute = False
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
        hidden_BSD = functional.embedding(ids_BS, self.embedding.weight)
        hidden_BSD = hidden_BSD.to(self.compute_dtype or hidden_BSD.dtype)
        rotary = self._rotation(positions_BS, hidden_BSD.dtype)
        masks = self._masks(ids_BS, positions_BS, document_ids_BS, cache)

        all_losses: list[dict[str, Tensor]] = []
        loads: dict[int, ExpertLoad] = {}
        for index, layer in enumerate(self.layers):
            inputs = (
                hidden_BSD,
                rotary,
                masks[self.config.window_of_layer(index)],
                positions_BS,
                valid_BS,
                cache,
            )
            if self.recompute and self.training:
                hidden_BSD, losses, load = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                hidden_BSD, losses, load = layer(*inputs)
            if load is not None:
                all_losses.append(losses)
                loads[index] = load
        if cache is not None:
            cache.lengths_B += ids_BS.shape[1] if valid_BS is None else valid_BS.sum(1)
        names = all_losses[0] if all_losses else {}
        losses = {name: torch.stack([each[name] for each in all_losses]).mean() for name in names}
        return DecoderOutput(self.norm(hidden_BSD), losses, loads)

    def _rotation(self, positions_BS: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        config = self.config
        frequencies, scale = build_frequencies(config.head_channels, config.rope_theta, config.rope_scaling)
        return rotation(positions_BS, frequencies.to(positions_BS.device), scale, dtype)

    def _masks(
        self, ids_BS: Tensor, positions_BS: Tensor, document_ids_BS: Tensor | None, cache: KVCache | None
    ) -> dict[int | None, AttentionMask]:
        """Build one mask for each window size among the layers."""
        length = ids_BS.shape[1]
        if cache is None:
            # Positions may restart within a packed sequence; a mask counts keys, not positions.
            indices_BS = torch.arange(length, device=ids_BS.device).unsqueeze(0)
            num_keys = length
        else:
            indices_BS, num_keys = positions_BS, int(positions_BS.max()) + 1
        windows = {self.config.window_of_layer(layer) for layer in range(self.config.num_hidden_layers)}
        return {
            window: build_mask(indices_BS, num_keys, window, document_ids_BS, cached=cache is not None)
            for window in windows
        }
