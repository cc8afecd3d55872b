"""What a pass through the model holds besides weights and keys and values."""

from moesaic.config.model import ModelConfig


def activation_bytes(config: ModelConfig, num_sequences: int, length: int, itemsize: int) -> int:
    """Return an upper bound on the bytes of activations in a pass without gradients.

    Args:
        config: of the model.
        num_sequences, length: of the padded batch.
        itemsize: bytes of an activation.
    """
    tokens = num_sequences * length
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_channels
    # The residual stream, normed and attended; query, key and value before and after rotation.
    attention = 6 * hidden + 3 * (heads + 2 * config.kv_heads * config.head_channels)
    dense = 3 * config.intermediate_size
    mixture = 2 * hidden
    if config.num_experts:
        # Each expert's rows and gated values, their numbers; the float32 input of the router, its scores.
        mixture += config.experts_per_token * (hidden + 2 * config.expert_width)
        mixture += 4 // itemsize * (hidden + 4 * config.num_experts) + 16 * config.experts_per_token
        mixture += 3 * (config.shared_expert_intermediate_size or 0)
    values = tokens * (4 * hidden + max(attention, dense, mixture))
    mask = num_sequences * length * length * (1 + itemsize)
    logits = num_sequences * config.vocab_size * 8
    return values * itemsize + mask + logits
