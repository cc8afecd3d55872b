"""Benchmarks: interleaved measurements against peers and against the machine, results as files."""
