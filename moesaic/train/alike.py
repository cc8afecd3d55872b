"""Whether all processes of a run were started alike."""

import hashlib
import json
import platform
from collections.abc import Mapping

import torch

from moesaic import __version__
from moesaic.comm.world import World
from moesaic.config.run import RunConfig
from moesaic.errors import ConfigError


def check_alike(world: World, config: RunConfig) -> None:
    """Compare versions and recipes with those of the first process; all must call.

    Raises:
        ConfigError: a process differs from the first; the text names it, and what differs.
    """
    # Versions first: another version may know other keys.
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "moesaic": __version__}
    _compare(world, versions, "the same versions on every node")
    sections = config.model_dump(mode="json")
    keys = {f"{name}.{key}": json.dumps(value) for name, each in sections.items() for key, value in each.items()}
    _compare(world, keys, "the same recipe and overrides on every node")


def _compare(world: World, facts: Mapping[str, str], wanted: str) -> None:
    # Digests of seven bytes fit a signed number, and numbers are all that processes hand each other here.
    digests = [int.from_bytes(hashlib.sha256(value.encode()).digest()[:7], "big") for value in facts.values()]
    first, *others = world.gather(digests)
    for rank, theirs in enumerate(others, start=1):
        different = [name for name, here, there in zip(facts, first, theirs, strict=True) if here != there]
        if different:
            mine = f"; on rank {world.rank} it is {facts[different[0]]}" if world.rank in (0, rank) else ""
            raise ConfigError(f"rank {rank} has another {different[0]} than rank 0{mine}", f"start with {wanted}")
