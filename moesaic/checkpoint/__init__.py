"""Weights and training state on disk: safetensors in and out, nothing is ever unpickled."""
