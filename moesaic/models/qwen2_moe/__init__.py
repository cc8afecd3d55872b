"""Qwen2-MoE: names and published sizes."""
