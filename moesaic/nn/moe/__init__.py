"""The mixture-of-experts layer: route, mix, balance."""
