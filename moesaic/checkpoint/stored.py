"""A model as it lies on disk: what it is, and which stored tensors it is made of. No weight is read."""

from dataclasses import dataclass
from pathlib import Path

import torch

from moesaic.checkpoint.folder import is_checkpoint, load_config
from moesaic.checkpoint.manifest import list_files
from moesaic.checkpoint.mapping import Source, plan_sources, quantised_dtype
from moesaic.checkpoint.page_index import CORE, PAGES, PageIndex
from moesaic.checkpoint.tensors import FLOATS, TensorFolder
from moesaic.errors import UnsupportedError
from moesaic.memory.page import Page
from moesaic.models.model import LanguageModel, build_model
from moesaic.models.table import NATIVE, find_family
from moesaic.nn.quantised_linear import apply_quantised_linear

_EXPERTS = ".moe.experts."


@dataclass(frozen=True)
class RepackedPages:
    """The experts of a repacked model.

    Attributes:
        index: what it says of them.
        pages: of each layer.
    """

    index: PageIndex
    pages: dict[int, list[Page]]


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint whose names, shapes and dtypes fit its configuration.

    Attributes:
        model: without memory, on the device 'meta'.
        tensors: what is stored; of a repacked model the dense core.
        sources: where each entry of the model's state comes from; of a repacked model those of the dense core.
        repacked: where the experts of a repacked model come from; None: it is none.
    """

    model: LanguageModel
    tensors: TensorFolder
    sources: dict[str, Source]
    repacked: RepackedPages | None

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of most stored tensors that were not rounded; of equally many, the first."""
        kept = [source for name, source in self.sources.items() if quantised_dtype(name) is None]
        dtypes = [self.tensors.stored[name].dtype for source in kept for name in source.names]
        return FLOATS[max(dict.fromkeys(dtypes), key=dtypes.count)]

    @property
    def dense_names(self) -> list[str]:
        """Return the entries of the model's state that are no experts'."""
        return [name for name in self.sources if _EXPERTS not in name]

    @property
    def bits(self) -> int | None:
        """Return the bits of the experts' weights, 8 or 4; None: they are floats."""
        return None if self.repacked is None else self.repacked.index.bits

    def check_exact(self) -> None:
        """Check that the weights are floats.

        Raises:
            UnsupportedError: those of the experts have been rounded to a few bits.
        """
        if self.bits is not None:
            raise UnsupportedError(
                f"'{self.tensors.folder}' has experts of {self.bits} bits, made for generating alone",
                "give the model that it was converted from",
            )


def open_model(folder: Path) -> StoredModel:
    """Check that a folder of `find_model` holds a whole model.

    Raises:
        CheckpointError: files are missing, damaged or do not fit the configuration.
        ConfigError: the configuration has a value of wrong type or range, or lacks one.
        UnsupportedError: a family or feature that is not supported.
    """
    config = load_config(folder)
    model = build_model(config, device="meta")
    index = PageIndex.load(folder) if (folder / PAGES).is_file() else None
    if index is not None and index.core_bits is not None:
        apply_quantised_linear(model)
    names = None if index is None else [CORE]
    if is_checkpoint(folder):
        names = list(list_files(folder, "model"))
    tensors = TensorFolder(folder, names)
    has_our_names = config.model_type == NATIVE or is_checkpoint(folder)
    family = None if has_our_names else find_family(config.model_type)
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if index is None or _EXPERTS not in name
    }
    sources = plan_sources(shapes, family, tensors)
    if index is None:
        return StoredModel(model, tensors, sources, None)
    index.check_fits(folder, {layer: moe.experts for layer, moe in model.moe_layers().items()})
    return StoredModel(model, tensors, sources, RepackedPages(index, index.find_pages(folder)))
