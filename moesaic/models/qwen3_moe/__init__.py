"""Qwen3-MoE: names and published sizes."""
