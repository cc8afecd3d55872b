"""A model as it lies on disk: what it is, and which stored tensors it is made of. No weight is read."""

from dataclasses import dataclass
from pathlib import Path

from moesaic.checkpoint.folder import is_checkpoint, load_config
from moesaic.checkpoint.mapping import Source, plan_sources
from moesaic.checkpoint.tensors import TensorFolder
from moesaic.models.model import LanguageModel, build_model
from moesaic.models.table import NATIVE, find_family


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint whose names, shapes and dtypes fit its configuration.

    Attributes:
        model: without memory, on the device 'meta'.
        tensors: what is stored.
        sources: where each entry of the model's state comes from.
    """

    model: LanguageModel
    tensors: TensorFolder
    sources: dict[str, Source]


def open_model(folder: Path) -> StoredModel:
    """Check that a folder of `find_model` holds a whole model.

    Raises:
        CheckpointError: files are missing, damaged or do not fit the configuration.
        ConfigError: the configuration has a value of wrong type or range, or lacks one.
        UnsupportedError: a family or feature that is not supported.
    """
    config = load_config(folder)
    tensors = TensorFolder(folder)
    model = build_model(config, device="meta")
    has_our_names = config.model_type == NATIVE or is_checkpoint(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return StoredModel(
        model, tensors, plan_sources(shapes, None if has_our_names else find_family(config.model_type), tensors)
    )
