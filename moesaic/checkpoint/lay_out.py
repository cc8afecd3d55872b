"""What a stored model is in memory: the record and the page of each expert, and the bytes of the dense core."""

import torch

from moesaic.checkpoint.load import kept_dtype
from moesaic.checkpoint.page_index import lay_out_record
from moesaic.checkpoint.pieces import page_of
from moesaic.checkpoint.stored import StoredModel
from moesaic.errors import UnsupportedError
from moesaic.memory.page import Page, PageLayout
from moesaic.ops.quant import TOKEN_DTYPES


def lay_out_pages(stored: StoredModel, kept: torch.dtype) -> tuple[PageLayout, dict[int, list[Page]]]:
    """Return the record of an expert with weights of dtype `kept`, and by MoE layer the page of each expert.

    Records of a repacked model are as they were written; where their weights are of a few bits, `kept` is the dtype of
    the dense core and of what is computed.

    Raises:
        UnsupportedError: the records of a repacked model do not go with this dtype.
    """
    if stored.repacked is not None:
        _check_dtype(stored, kept)
        return stored.repacked.index.layout, stored.repacked.pages
    state = stored.model.state_dict()
    layers = stored.model.moe_layers()
    if not layers:
        return PageLayout.of({}), {}
    prefixes = {layer: f"decoder.layers.{layer}.moe.experts." for layer in layers}
    layout = lay_out_record(next(iter(layers.values())).experts, None, kept)
    pages = {}
    for layer, prefix in prefixes.items():
        sources = {name: stored.sources[prefix + name] for name in layout.fields}
        num_experts = state[prefix + "down"].shape[0]
        pages[layer] = [page_of(expert, sources, layout, stored.tensors) for expert in range(num_experts)]
    return layout, pages


def count_dense_bytes(stored: StoredModel, kept: torch.dtype) -> int:
    """Return the bytes of the dense core in memory, with weights of dtype `kept`."""
    state = stored.model.state_dict()
    return sum(state[name].numel() * kept_dtype(name, kept).itemsize for name in stored.dense_names)


def _check_dtype(stored: StoredModel, kept: torch.dtype) -> None:
    name, folder = str(kept).removeprefix("torch."), stored.tensors.folder
    if stored.bits is not None and kept not in TOKEN_DTYPES:
        raise UnsupportedError(
            f"'{folder}' has experts of {stored.bits} bits, which are not computed in {name}",
            "ask for bfloat16 or float32",
        )
    if stored.bits is None and kept != stored.dtype:
        held = str(stored.dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"'{folder}' has pages of {held}, read as they are; {name} was asked for",
            f"leave out the dtype, or write another folder: moesaic convert {folder} NEW --to moesaic --dtype {name}",
        )
