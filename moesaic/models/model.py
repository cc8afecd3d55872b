"""The language model: a decoder and an output head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.nn.cache import KVCache
from moesaic.nn.decoder import Decoder, DecoderOutput
from moesaic.nn.linear import Linear
from moesaic.nn.moe.layer import MoELayer
from moesaic.nn.quantised_linear import QuantisedLinear
from moesaic.ops.linear import linear
from moesaic.ops.linear_cross_entropy import linear_cross_entropy


class LanguageModel(nn.Module):
    """Token ids to next-token logits, for every supported family.

    Attributes:
        cross_entropy_fn: from hidden states [T, D], the head's weight and labels [T] to the summed cross-entropy.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = Decoder(config)
        self.cross_entropy_fn: Callable[[Tensor, Tensor, Tensor], Tensor] = linear_cross_entropy
        self.head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Return logits [B, S, V] of the token after each position."""
        return self.logits(self.decoder(ids_BS).hidden_BSD)

    def decode(
        self,
        ids_BS: Tensor,
        positions_BS: Tensor | None = None,
        document_ids_BS: Tensor | None = None,
        valid_BS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> DecoderOutput:
        """Run the decoder alone: hidden states, auxiliary losses, expert load. See `Decoder.forward`."""
        return self.decoder(ids_BS, positions_BS, document_ids_BS, valid_BS, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states [..., D] to logits [..., V], in the dtype of the hidden states."""
        if self.head is not None:
            return self.head(hidden)
        return linear(hidden, self.decoder.embedding.weight.to(hidden.dtype))

    def cross_entropy_sum(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        """Return the summed cross-entropy of labels, in nats, without the logits; labels of -100 count nowhere."""
        weight = self.decoder.embedding.weight if self.head is None else self.head.weight
        return self.cross_entropy_fn(hidden_BSD.flatten(0, 1), weight, labels_BS.flatten())

    def score(
        self,
        ids_BS: Tensor,
        labels_BS: Tensor,
        positions_BS: Tensor | None = None,
        document_ids_BS: Tensor | None = None,
    ) -> tuple[Tensor, DecoderOutput]:
        """Return the summed cross-entropy of labels, and what the decoder tells, in one pass of the whole model."""
        output = self.decode(ids_BS, positions_BS, document_ids_BS)
        return self.cross_entropy_sum(output.hidden_BSD, labels_BS), output

    def new_cache(self, batch: int, num_slots: int) -> KVCache:
        """Return an empty cache for this many sequences and positions."""
        config = self.config
        dtype = self.decoder.compute_dtype or self.decoder.embedding.weight.dtype
        with torch.device(self.decoder.embedding.weight.device):
            return KVCache(config.num_hidden_layers, batch, config.kv_heads, num_slots, config.head_channels, dtype)

    def moe_layers(self) -> dict[int, MoELayer]:
        """Return the mixtures by layer index."""
        found = {index: layer.moe for index, layer in enumerate(self.decoder.layers)}
        return {index: moe for index, moe in found.items() if isinstance(moe, MoELayer)}

    def num_parameters(self) -> tuple[int, int]:
        """Return (all parameters, those active for one token); a weight of 8 bits is one."""
        total = sum(parameter.numel() for parameter in self.parameters())
        rounded = (module for module in self.modules() if isinstance(module, QuantisedLinear))
        total += sum(module.in_features * module.out_features for module in rounded)
        config = self.config
        expert = 3 * config.hidden_size * config.expert_width
        moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
        idle = moe_layers * expert * (config.num_experts - config.experts_per_token)
        return total, total - max(0, idle)


def build_model(config: ModelConfig, device: str = "cpu") -> LanguageModel:
    """Build a model with weights that are not set yet; `device` may be 'meta'."""
    with torch.device(device):
        return LanguageModel(config)
