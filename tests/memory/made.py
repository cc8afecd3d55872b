"""Pages in files, with bytes that tell whose they are."""

from pathlib import Path

import numpy as np
import torch

from moesaic.memory.page import Extent, Page, PageLayout, Piece

LAYOUT = PageLayout.of({"gate_up": ((3, 5), torch.float32), "down": ((5, 7), torch.float32)})


def values_of(layer: int, expert: int) -> dict[str, torch.Tensor]:
    """Return the weights of an expert, unlike any other's."""
    generator = torch.Generator().manual_seed(1000 * layer + expert)
    return {name: torch.rand(field.shape, generator=generator) for name, field in LAYOUT.fields.items()}


def write_pages(folder: Path, num_layers: int, num_experts: int, odd_bytes: int = 13) -> dict[int, list[Page]]:
    """Write a file for each layer, its tensors at odd places, and return the pages."""
    pages: dict[int, list[Page]] = {}
    for layer in range(num_layers):
        file, content = folder / f"layer-{layer}.bin", bytearray(odd_bytes)
        pages[layer] = []
        for expert in range(num_experts):
            pieces = []
            for name, tensor in values_of(layer, expert).items():
                data = tensor.numpy().tobytes()
                pieces.append(
                    Piece(Extent(file, len(content), len(data)), tensor.dtype, tensor.dtype, LAYOUT.fields[name].start)
                )
                content += data
            pages[layer].append(tuple(pieces))
        file.write_bytes(content)
    return pages


def holds(record: np.ndarray, layer: int, expert: int) -> bool:
    """Tell whether a record holds an expert's weights."""
    views = LAYOUT.views(torch.from_numpy(record).unsqueeze(0))
    return all(torch.equal(views[name][0], tensor) for name, tensor in values_of(layer, expert).items())
