"""How many chunks the mixtures of a run are computed in, and that a run keeps them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from moesaic.comm.cost import Cost
from moesaic.comm.mesh import build_mesh
from moesaic.comm.world import World
from moesaic.errors import ConfigError
from moesaic.optim.table import build_optimizer
from moesaic.parallel.apply import apply_parallel, share_gradients
from moesaic.parallel.pipeline import PipelinedDispatcher
from moesaic.parallel.profile import Profile
from moesaic.parallel.schedule import Costs
from moesaic.train import schedule
from moesaic.train.schedule import schedule_layers
from moesaic.train.state import TrainState
from tests.comm.pool import Pools
from tests.parallel.twin import Changes, twin_config, twin_model

# A slow link: chunks pay.
SLOW = Costs((Cost(1e-2, 1e-4),), Cost(1e-4, 1e-3), Cost(1e-4, 2e-3), Cost(1e-4, 1e-6))


def _degrees(changes: Changes, path: Path, goes_on: bool, costs: Costs | None, faster: bool = True) -> list[int]:
    """Schedule a new model, with made-up costs where given; return the chunks of its mixtures."""
    config = twin_config({"train.precision": "float32", **changes})
    mesh = build_mesh(2, 1, config.parallel.expert or 2)
    model = apply_parallel(twin_model(config), mesh)
    gradients = share_gradients(model, mesh, config.parallel.bucket_bytes)
    loader: Any = None
    state = TrainState(model, build_optimizer(model, config.optim), loader, gradients, World(dist.get_rank(), 2))
    with pytest.MonkeyPatch.context() as patch:
        if costs is not None:
            patch.setattr(schedule, "measure_profile", lambda *_: Profile(costs, Cost(1e-4, 1e-9)))
            patch.setattr(schedule, "is_faster", lambda *_: faster)
        schedule_layers(state, config, path, goes_on, Console(quiet=True))
    dispatchers = [moe.dispatcher for moe in model.moe_layers().values()]
    return [each.degree if isinstance(each, PipelinedDispatcher) else 1 for each in dispatchers]


@pytest.mark.parametrize(
    ("changes", "degree"),
    [
        ({"parallel.schedule": "off"}, 1),
        ({"parallel.schedule": 1}, 1),
        ({"parallel.schedule": 4}, 4),
        ({"parallel.schedule": 4, "parallel.expert": 1}, 1),
    ],
    ids=["off", "one", "four", "nothing_travels"],
)
def test_layers_are_computed_as_asked_and_nothing_is_measured(
    changes: Changes, degree: int, pools: Pools, tmp_path: Path
) -> None:
    path = tmp_path / "schedule.json"
    num_layers = len(pools(2).run(_degrees, changes, path, False, None)[0])
    assert pools(2).run(_degrees, changes, path, False, None) == [[degree] * num_layers] * 2
    assert not path.exists()


def test_chunks_are_measured_for_and_kept_when_a_run_goes_on(pools: Pools, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    first, second = pools(2).run(_degrees, {}, path, False, SLOW)
    assert first == second
    assert min(first) > 1
    written = json.loads(path.read_text())
    assert (written["ranks"], written["degrees"]) == (2, first)
    assert written["predicted_s"]["forward"]["1"] > written["predicted_s"]["forward"][str(first[0])]
    # On another day the machine is such that chunks do not pay.
    disturbed = replace(SLOW, overlap=0.0)
    assert pools(2).run(_degrees, {}, path, True, disturbed) == [first] * 2
    # A run from scratch does not look at it.
    assert pools(2).run(_degrees, {}, path, False, disturbed) == [[1] * len(first)] * 2
    assert json.loads(path.read_text())["degrees"] == [1] * len(first)


def test_layers_are_whole_when_chunks_do_not_keep_their_promise(pools: Pools, tmp_path: Path) -> None:
    found = pools(2).run(_degrees, {}, tmp_path / "schedule.json", False, SLOW, False)
    assert found == [[1] * len(found[0])] * 2


@pytest.mark.parametrize(
    "change",
    [{"ranks": 3}, {"degrees": [2]}, {"degrees": [3, 3]}, {"degrees": None}, {"released_bytes": [1]}, None],
    ids=str,
)
def test_chunks_are_measured_for_again_when_the_file_is_of_others_or_damaged(
    change: dict[str, Any] | None, pools: Pools, tmp_path: Path
) -> None:
    path = tmp_path / "schedule.json"
    expected = pools(2).run(_degrees, {}, path, False, SLOW)
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | change) if change else '{"ranks": 2, "degr')
    assert pools(2).run(_degrees, {}, path, True, SLOW) == expected
    assert json.loads(path.read_text()) == whole


def test_chunks_are_those_of_this_machine_when_measured(pools: Pools, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    first, second = pools(2).run(_degrees, {}, path, False, None)
    assert first == second == json.loads(path.read_text())["degrees"]


def test_chunks_are_refused_when_a_gpu_computes(tmp_path: Path) -> None:
    model: Any = None
    state = TrainState(model, model, model, model, World(device=torch.device("cuda", 0)))
    path, console = tmp_path / "schedule.json", Console(quiet=True)
    with pytest.raises(ConfigError, match=r"parallel\.schedule is 4, but on a GPU") as caught:
        schedule_layers(state, twin_config({"parallel.schedule": 4}), path, False, console)
    assert "'off'" in caught.value.hint
    schedule_layers(state, twin_config({}), path, False, console)
    assert not path.exists(), "nothing was measured"
