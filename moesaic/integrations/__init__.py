"""Plug-ins: moesaic's kernels inside other libraries. Nothing here runs unless its `register` is called."""
