"""A checkpoint of several ranks converted in a process that never holds all of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.inspect import inspect_checkpoint
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.comm.mesh import build_mesh
from moesaic.comm.world import World
from moesaic.models.model import build_model
from moesaic.nn.init import init_weights
from moesaic.parallel.apply import apply_parallel
from moesaic.parallel.part import own_part
from moesaic.testing.tiny import tiny_config
from tests.comm.pool import Pools

# 25 MB of experts a layer, in two tensors of 17 and 8.
SIZES = {"hidden_size": 256, "moe_intermediate_size": 1024, "num_experts": 8}
LAYER_BYTES = 4 * 8 * 3 * 256 * 1024

# Prints by how much the process grew at most; a file of 8 MB or one parameter at a time.
CONVERTER = """
import sys
from pathlib import Path
import moesaic.checkpoint.export as export
from moesaic.checkpoint import convert

def held(kind):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))

source, target, kind = sys.argv[1:]
convert.export_tensors = lambda *rest: export.export_tensors(*rest, shard_bytes=8_000_000)
before = held("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
if kind == "hf":
    convert.convert_to_hf(source, Path(target), None)
else:
    convert.convert_to_moesaic(source, Path(target), None, None, lambda done, total: None)
print(held("VmHWM") - before)
"""


def _write(folder: Path, num_layers: int) -> None:
    """Save a model as two ranks that have half of the experts each, and a share of the rest."""
    config = tiny_config(**SIZES, num_hidden_layers=num_layers)
    model = apply_parallel(build_model(config, device="meta"), build_mesh(1, 2, 2)).to_empty(device="cpu")
    init_weights(model, config, 0, own_part)
    state = {"step": 1, "config": {"model": config.model_dump(mode="json")}}
    agreement = Agreement(World(dist.get_rank(), dist.get_world_size()))
    CheckpointStore(folder, 9, False).save(Snapshot(state, {"model": model.state_dict()}), agreement)


def _convert(written: Path, new: Path, kind: str) -> int:
    command = [sys.executable, "-c", CONVERTER, str(written), str(new), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "moesaic"])
def test_memory_does_not_grow_with_the_model_when_converted(kind: str, pools: Pools, tmp_path: Path) -> None:
    grown = []
    for num_layers in (1, 7):
        pools(2).run(_write, tmp_path / str(num_layers), num_layers)
        written, new = tmp_path / str(num_layers) / "step-00000001", tmp_path / f"new {num_layers}"
        grown.append(_convert(written, new, kind))
    # Six layers more.
    assert grown[1] - grown[0] < 2 * LAYER_BYTES, grown
    assert inspect_checkpoint(written)["expert_bytes"] == 7 * LAYER_BYTES
    expected, found = load_model(written).state_dict(), load_model(new).state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
