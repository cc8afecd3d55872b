"""A tiny run in any layout of ranks, saved and brought back: what the ranks of a test do."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.manifest import read_state
from moesaic.checkpoint.saver import Saver
from moesaic.checkpoint.store import CheckpointStore
from moesaic.comm.mesh import build_mesh
from moesaic.comm.world import World
from moesaic.config.run import RunConfig
from moesaic.models.model import build_model
from moesaic.nn.init import init_weights
from moesaic.optim.table import build_optimizer
from moesaic.parallel.apply import apply_parallel, share_gradients
from moesaic.parallel.gradient import LocalGradients
from moesaic.parallel.part import own_part, whole
from moesaic.train.state import TrainState
from moesaic.train.step import train_step
from tests.parallel.twin import Changes, twin_batch, twin_config

Arrays = dict[str, np.ndarray]


class Layout(NamedTuple):
    """Ranks, those that share dense parameters, experts, heads; and whether embedding and head are in parts."""

    ranks: int
    shard: int
    expert: int
    tensor: int = 1
    splits_embedding: bool = False


class Place:
    """Stands for a loader: its position."""

    def __init__(self, sample: int) -> None:
        self.sample = sample

    def state_dict(self) -> dict[str, Any]:
        """Return the position."""
        return {"sample": self.sample}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a position over."""
        self.sample = state["sample"]


def layouts(num_experts: int) -> list[Layout]:
    """List layouts of up to four ranks: of data and experts all, of heads and embeddings some."""
    divisors = {1: (1,), 2: (1, 2), 4: (1, 2, 4)}
    found = [
        Layout(ranks, shard, expert) for ranks, degrees in divisors.items() for shard in degrees for expert in degrees
    ]
    found += [Layout(2, 1, 2, tensor=2), Layout(2, 2, 1, splits_embedding=True)]
    found += [Layout(4, 1, 2, 2, True), Layout(4, 2, 1, 2), Layout(4, 1, 2, 4)]
    return [layout for layout in found if num_experts % layout.expert == 0]


def new_state(layout: Layout, changes: Changes, seed: int) -> tuple[TrainState, RunConfig]:
    """Build the run in a layout; all of its ranks must call."""
    ranks, shard, expert, tensor, splits_embedding = layout
    config = twin_config(changes)
    loader: Any = Place(seed)
    if ranks == 1:
        model = build_model(config.model)
        init_weights(model, config.model, seed)
        return TrainState(model, build_optimizer(model, config.optim), loader, LocalGradients(model)), config
    mesh = build_mesh(ranks // shard // tensor, shard, expert, tensor=tensor)
    model = build_model(config.model, device="meta")
    model = apply_parallel(model, mesh, split_embedding=splits_embedding).to_empty(device="cpu")
    init_weights(model, config.model, seed, own_part)
    gradients = share_gradients(model, mesh, config.parallel.bucket_bytes)
    world = World(dist.get_rank(), dist.get_world_size())
    return TrainState(model, build_optimizer(model, config.optim), loader, gradients, world), config


def read_whole(state: TrainState, config: RunConfig) -> Arrays:
    """Return everything that a checkpoint holds, whole; all ranks must call."""
    tensors = state.snapshot(config).tensors
    found = {f"{folder}/{name}": whole(each) for folder, own in tensors.items() for name, each in own.items()}
    arrays = {name: each.detach().numpy().copy() for name, each in found.items()}
    return arrays | {"step": np.array(state.step), "loader": np.array(state.loader.state_dict()["sample"])}


def save_in(layout: Layout, changes: Changes, folder: Path, asynchronous: bool) -> Arrays:
    """Take two steps and save, as one of the ranks of a layout; return what was to be saved."""
    state, config = new_state(layout, changes, seed=1)
    batch = twin_batch(config)
    torch.manual_seed(5)
    for step in (1, 2):
        train_step(state.model, state.optimizer, batch, step, config, state.world, state.gradients)
    state.step = 2
    expected = read_whole(state, config)
    agreement = Agreement.apart(state.world, 60) if asynchronous else Agreement(state.world)
    saver = Saver(CheckpointStore(folder, 9, False), agreement, asynchronous)
    state.optimizer.register_step_pre_hook(lambda *_: saver.wait_copied())
    saver.begin(lambda: state.snapshot(config))
    # What was saved moves on before it is written.
    state.loader.sample = 99
    train_step(state.model, state.optimizer, batch, 2, config, state.world, state.gradients)
    saver.wait()
    return expected


def restore_in(wanted: list[Layout], changes: Changes, path: Path) -> dict[Layout, Arrays]:
    """Bring a checkpoint back in layouts of as many ranks as there are; return what each then holds."""
    found = {}
    for layout in wanted:
        state, config = new_state(layout, changes, seed=2)
        torch.manual_seed(6)
        state.restore(path, read_state(path))
        found[layout] = read_whole(state, config)
    return found
