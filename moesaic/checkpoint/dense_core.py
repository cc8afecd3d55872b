"""Writing the dense core of a repacked model, tensor by tensor, its linear maps rounded to 8 bits if asked."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.encode import encode_matrix
from moesaic.checkpoint.load import kept_dtype, read_parameters
from moesaic.checkpoint.mapping import source_choices
from moesaic.checkpoint.stored import StoredModel
from moesaic.checkpoint.tensor_file import write_tensor_file
from moesaic.errors import UnsupportedError
from moesaic.memory.disk import Disk
from moesaic.models.spec import FamilySpec
from moesaic.nn.quantised_linear import list_linear_maps
from moesaic.ops.quant import quantised_matrix_shapes


class CoreWriter:
    """Writes the dense core of a stored model; one tensor of it is in memory.

    Args:
        stored: the model.
        family: whose names are written; None: our own.
        kept: dtype of what is not rounded.
        core_bits: of the linear maps, 8; None: none is rounded.
        disk: which reads.

    Attributes:
        decibels: what rounding cost each map, by the stored name of its floats, once it is written.
    """

    def __init__(
        self, stored: StoredModel, family: FamilySpec | None, kept: torch.dtype, core_bits: int | None, disk: Disk
    ) -> None:
        self.decibels: dict[str, float | None] = {}
        self._stored, self._family, self._kept, self._disk = stored, family, kept, disk
        maps = [] if core_bits is None else list_linear_maps(stored.model)
        self._rounded = {f"{name}.weight" for name in maps}

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            UnsupportedError: a weight that is to be rounded is not finite.
            CheckpointError: a file cannot be read.
            OSError: it cannot be written.
        """
        state = self._stored.model.state_dict()
        entries: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for name in self._stored.dense_names:
            shape = tuple(state[name].shape)
            if name in self._rounded:
                stem = name.removesuffix("weight")
                for part, each in zip(("blocks", "scales"), quantised_matrix_shapes(*shape), strict=True):
                    entries[self._stored_name(stem + part)] = each, kept_dtype(stem + part, self._kept)
            else:
                entries[self._stored_name(name)] = shape, kept_dtype(name, self._kept)
        write_tensor_file(path, entries, self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        for name in self._stored.dense_names:
            if name not in self._rounded:
                yield read_parameters(self._stored, [name], self._kept, self._disk)[name]
                continue
            # Weights to be rounded to a few bits are not rounded before.
            weight = read_parameters(self._stored, [name], self._stored.dtype, self._disk)[name]
            stored_name = self._stored_name(name)
            try:
                matrix, self.decibels[stored_name] = encode_matrix(weight)
            except UnsupportedError as failure:
                raise UnsupportedError(f"'{stored_name}': {failure.text}", failure.hint) from None
            yield matrix.blocks
            yield matrix.scales

    def _stored_name(self, name: str) -> str:
        return source_choices(name, (), self._family)[0].names[0]
