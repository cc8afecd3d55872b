"""OLMoE: names and published sizes."""
