"""Helpers for tests and benchmarks, ours and those of plug-in authors. Nothing else imports them."""
