"""What a recipe asks of each kind of memory, told before anything is built."""

import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moesaic.config.run import RunConfig
from moesaic.hw.memory import available_bytes
from moesaic.memory.mode import expected_touched
from moesaic.memory.tiers import Machine, TrainingSizes, count_largest_sparse, count_machines, plan_tiers
from moesaic.models.model import build_model
from moesaic.optim.table import state_bytes
from moesaic.parallel.describe import describe_layout
from moesaic.parallel.plan import plan_degrees


def plan_training(config: RunConfig, memory: int | None = None) -> dict[str, Any]:
    """Tell how many machines such as this one hold the training state of a recipe, tier by tier.

    Args:
        config: the recipe.
        memory: bytes of memory that a machine gives; None: what is free here. Of its disk, what is free below
            `train.out`.

    Returns:
        Plain data: counts and bytes. `whole_bytes` is the state of all parameters at once.
    """
    sizes = size_training(config)
    folder = Path(config.train.out).absolute()
    existing = next(each for each in (folder, *folder.parents) if each.is_dir())
    machine = Machine(available_bytes() if memory is None else memory, shutil.disk_usage(existing).free)
    needs = plan_tiers(sizes, machine)
    return {
        "parameters": sizes.dense + sizes.sparse,
        "dense_parameters": sizes.dense,
        "expert_parameters": sizes.sparse,
        "moe_layers": sizes.num_layers,
        "touched_share": sizes.touched,
        "state_bytes_per_parameter": sizes.state_bytes,
        "tiers": {
            tier: {"needed_bytes": needs[tier], "machine_bytes": capacity} for tier, capacity in machine.tiers.items()
        },
        "machines": count_machines(sizes, machine),
        "largest_expert_parameters": count_largest_sparse(sizes, machine),
        "whole_bytes": state_bytes(sizes.dense + sizes.sparse, config.optim.kind),
    }


def plan_layout(config: RunConfig, num_ranks: int) -> dict[str, Any]:
    """Tell which part of each parameter a rank keeps; nothing is started.

    Args:
        config: the recipe.
        num_ranks: processes of the run.

    Returns:
        Plain data. Layers that keep alike are told once, with '*' for their number.

    Raises:
        ConfigError: the recipe's degrees do not fit so many ranks.
    """
    each_bytes = state_bytes(1, config.optim.kind)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    total_bytes = whole_bytes = 0
    for part in describe_layout(config, num_ranks):
        name = re.sub(r"\.\d+\.", ".*.", part["name"])
        key = (name, part["placement"], *part["shape"])
        group = groups.setdefault(key, {**part, "name": name, "count": 0, "state_bytes": 0})
        group["count"] += 1
        group["state_bytes"] += each_bytes * part["elements"]
        total_bytes += each_bytes * part["elements"]
        whole_bytes += each_bytes * math.prod(part["shape"])
    return {
        "ranks": num_ranks,
        "degrees": asdict(plan_degrees(config.parallel, config.model, num_ranks)),
        "parameters": list(groups.values()),
        "state_bytes": total_bytes,
        "whole_bytes": whole_bytes,
    }


def size_training(config: RunConfig) -> TrainingSizes:
    """Return the sizes of a recipe's model; a pass has the tokens of one micro-batch, routed evenly."""
    model = build_model(config.model, device="meta")
    total, _ = model.num_parameters()
    layers = model.moe_layers()
    sparse = sum(each.numel() for name, each in model.named_parameters() if ".moe.experts." in name)
    touched = 1.0
    if layers:
        experts, chosen = config.model.num_experts, config.model.experts_per_token
        tokens = config.train.micro_batch * config.data.sequence_length
        touched = expected_touched(experts, chosen, tokens) / experts
    return TrainingSizes(total - sparse, sparse, len(layers), touched, state_bytes(1, config.optim.kind))
