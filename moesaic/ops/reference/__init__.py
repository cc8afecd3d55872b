"""Oracles: each operation written as slowly and as plainly as it can be. Tests compare against these."""
