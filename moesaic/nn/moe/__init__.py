"""The mixture-of-experts layer: route, dispatch, compute, combine."""
