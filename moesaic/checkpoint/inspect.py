"""What a checkpoint holds, from names and shapes alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from moesaic.checkpoint.folder import find_model
from moesaic.checkpoint.stored import StoredModel, open_model
from moesaic.memory.page import stored_bytes


def inspect_checkpoint(name: str | Path) -> dict[str, Any]:
    """Check that a checkpoint is complete, and return its sizes; no weights are read.

    Args:
        name: as for `load_model`.

    Returns:
        Counts and bytes: the dense core is what every token uses, an expert page is all tensors of one expert, or its
        record. Of experts and dense core that were rounded, their bits, and the `signal_to_noise_db` of what lost most.

    Raises:
        MoesaicError: as `open_model`.
    """
    folder = find_model(name)
    opened = open_model(folder)
    model, stored, sources = opened.model, opened.tensors, opened.sources
    config = model.config
    num_bytes = {
        parameter: sum(stored.stored[each].num_bytes for each in source.names) for parameter, source in sources.items()
    }
    dense_bytes = sum(num_bytes[parameter] for parameter in opened.dense_names)
    expert_bytes = sum(num_bytes.values()) - dense_bytes
    if opened.repacked is not None:
        expert_bytes = sum(stored_bytes(page) for each in opened.repacked.pages.values() for page in each)
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    total, active = model.num_parameters()
    dtypes = Counter(stored.stored[each].dtype for source in sources.values() for each in source.names)
    return {
        "folder": str(folder),
        "family": config.model_type,
        "layers": config.num_hidden_layers,
        "moe_layers": moe_layers,
        "experts_per_layer": config.num_experts,
        "experts_per_token": config.experts_per_token,
        "router": config.router,
        "parameters": total,
        "active_parameters": active,
        "dtype": ", ".join(dtype for dtype, _ in dtypes.most_common()),
        "total_bytes": dense_bytes + expert_bytes,
        "dense_core_bytes": dense_bytes,
        "expert_bytes": expert_bytes,
        "expert_page_bytes": expert_bytes // (moe_layers * config.num_experts) if moe_layers else 0,
        "experts_as": "tensors" if opened.repacked is None else "records",
        **_describe_rounding(opened),
    }


def _describe_rounding(opened: StoredModel) -> dict[str, Any]:
    """Return the bits of weights that were rounded, and the least signal to noise of any of them; else nothing."""
    if opened.repacked is None or opened.bits is None:
        return {}
    files = opened.repacked.index.files.values()
    decibels = [each for file in files for known in file.decibels.values() for each in known if each is not None]
    facts = {"expert_bits": opened.bits, "worst_expert_decibels": min(decibels, default=None)}
    index = opened.repacked.index
    if index.core_bits is not None:
        known = [each for each in index.core_decibels.values() if each is not None]
        facts |= {"core_bits": index.core_bits, "worst_core_decibels": min(known, default=None)}
    return facts
