"""Llama's names."""

from moesaic.models.names import ATTENTION_BIASES, DENSE_MLP, SHARED_TENSORS

KEYS = {"attention_bias": ("attention_bias",), "attention_output_bias": ("attention_bias",)}

TENSORS = SHARED_TENSORS | ATTENTION_BIASES | DENSE_MLP
