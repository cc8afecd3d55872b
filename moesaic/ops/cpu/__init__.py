"""The compiled kernels of `csrc/`, over plain pointers."""
