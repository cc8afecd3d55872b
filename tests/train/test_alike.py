"""Processes that were not started alike."""

from typing import Any

import pytest
import torch.distributed as dist

from moesaic.comm.world import World
from moesaic.errors import ConfigError
from moesaic.train import alike
from moesaic.train.alike import check_alike
from tests.comm.pool import Pools
from tests.parallel.twin import twin_config


def _told(changes: dict[str, Any], version: str | None) -> str | None:
    """Compare recipes, the second rank's with changes, and return the error."""
    second = dist.get_rank() == 1
    with pytest.MonkeyPatch.context() as patch:
        if second and version is not None:
            patch.setattr(alike, "__version__", version)
        try:
            check_alike(World(dist.get_rank(), dist.get_world_size()), twin_config(changes if second else {}))
        except ConfigError as failure:
            return failure.text
    return None


def test_nothing_is_said_when_recipes_and_versions_are_equal(pools: Pools) -> None:
    assert pools(2).run(_told, {}, None) == [None, None]


def test_rank_and_key_are_named_when_a_recipe_differs(pools: Pools) -> None:
    text = "rank 1 has another train.seed than rank 0; on rank {} it is {}"
    assert pools(2).run(_told, {"train.seed": 5}, None) == [text.format(0, 0), text.format(1, 5)]


def test_rank_is_named_when_it_has_another_version(pools: Pools) -> None:
    found = pools(2).run(_told, {"train.seed": 5}, "9.9")
    assert found[1] == "rank 1 has another moesaic than rank 0; on rank 1 it is 9.9"
