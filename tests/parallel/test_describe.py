"""Layouts for ranks that do not exist, against ranks that do."""

from typing import Any

import pytest
import torch.distributed as dist

from moesaic.comm.mesh import build_mesh
from moesaic.errors import ConfigError
from moesaic.parallel.apply import apply_parallel
from moesaic.parallel.describe import describe_layout
from moesaic.parallel.part import local_part
from moesaic.parallel.plan import plan_degrees
from tests.comm.pool import Pools
from tests.parallel.twin import Changes, twin_config, twin_model


def _kept(changes: Changes) -> dict[str, int]:
    config = twin_config(changes)
    degrees = plan_degrees(config.parallel, config.model, dist.get_world_size())
    model = twin_model(config)
    mesh = build_mesh(degrees.data_replicate, degrees.data_shard, degrees.expert, tensor=degrees.tensor)
    apply_parallel(model, mesh, split_embedding=degrees.splits_embedding)
    return {name: local_part(parameter).numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel.expert": 4},
        {"parallel.expert": 2, "parallel.data_shard": 2},
        {"parallel.expert": 1, "parallel.data_shard": 4},
        {"parallel.expert": 4, "parallel.tensor": 2},
        {"parallel.embedding": "split", "parallel.data_shard": 2, "parallel.tensor": 2},
        {"parallel.expert": 2, "parallel.tensor": 2, "parallel.data_shard": 2},
    ],
)
def test_layout_is_what_the_first_rank_keeps_when_there_are_ranks(changes: Changes, pools: Pools) -> None:
    layout = describe_layout(twin_config(changes), 4)
    assert {each["name"]: each["elements"] for each in layout} == pools(4).run(_kept, changes)[0]


def _find(layout: list[dict[str, Any]], ending: str) -> dict[str, Any]:
    return next(each for each in layout if each["name"].endswith(ending))


def test_placements_are_told_in_words_when_ranks_are_thousands() -> None:
    changes = {"parallel.expert": 8, "parallel.data_shard": 4}
    layout = describe_layout(twin_config(changes), 4096)
    experts, query = _find(layout, "0.moe.experts.gate_up"), _find(layout, "0.attention.query.weight")
    assert (experts["placement"], experts["copies"]) == ("1/8 over expert", 512)
    assert (query["placement"], query["copies"]) == ("1/4 over data_shard", 1024)
    assert experts["elements"] * 8 == experts["shape"][0] * experts["shape"][1] * experts["shape"][2]
    assert not dist.is_initialized(), "nobody was met"
    heads = describe_layout(twin_config({"parallel.tensor": 2, "parallel.data_shard": 4}), 64)
    output, norm = _find(heads, "0.attention.output.weight"), _find(heads, "0.mlp_norm.weight")
    assert (output["placement"], output["copies"]) == ("1/4 over data_shard, 1/2 over tensor", 8)
    assert (norm["placement"], norm["copies"]) == ("1/8 over data_shard", 8)
    plain = describe_layout(twin_config({"parallel.expert": 1}), 2)
    assert {each["placement"] for each in plain} == {"whole"}


def test_layout_is_refused_when_degrees_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="which does not divide the 6 ranks"):
        describe_layout(twin_config({"parallel.data_shard": 4}), 6)
    assert not dist.is_initialized()
