"""Llama: names and published sizes."""
