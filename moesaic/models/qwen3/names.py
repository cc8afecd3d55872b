"""Qwen3's names."""

from moesaic.models.names import ATTENTION_BIASES, DENSE_MLP, QUERY_KEY_NORMS, SHARED_TENSORS

KEYS = {"attention_bias": ("attention_bias",), "attention_output_bias": ("attention_bias",)}

TENSORS = SHARED_TENSORS | ATTENTION_BIASES | QUERY_KEY_NORMS | DENSE_MLP
