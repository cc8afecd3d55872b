"""Mixtral: names and published sizes."""
