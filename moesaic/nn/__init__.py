"""Single-device modules: no rank, no process group, no checkpoint names of others."""
