"""Qwen3: names and published sizes."""
