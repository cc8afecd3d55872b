"""One rank that saves and loads: a script for torchrun.

    checkpoint_worker.py REQUEST

REQUEST is a file with one JSON object, and rank 0 answers with one:

    {"folder": FOLDER, "repeats": N, "model": {...}, "tokens": N}
    {"bytes": ..., "seconds": {NAME: [...]}, "reports": [...]}

The state is weights and moments of a mixture all of whose experts every rank has, while the ranks have a share each of
the other parameters. It is loaded where the experts are spread over the ranks, and each has all other parameters. Of
each round:

    torch_save                  rank 0 writes the whole state, which it has in memory
    save                        all ranks write, training waits
    stall_at_rest, stall        what training waits while others write, with nothing else to do, and with steps
    step, step_beside           a step, and one while a checkpoint is written
    cold_*, warm_*              from the disk, and from the page cache: torch_load by rank 0, load at the other layout
                                by all ranks, load_alone by one process that has everything
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.bench.limited import drop_cached
from moesaic.checkpoint.agreement import Agreement
from moesaic.checkpoint.restore import restore_tensors
from moesaic.checkpoint.saver import Saver
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.comm.mesh import build_mesh
from moesaic.comm.world import World
from moesaic.config.load import check_section
from moesaic.config.run import RunConfig
from moesaic.data.loader import Batch
from moesaic.hw.allocator import keep_freed_memory
from moesaic.models.model import LanguageModel, build_model
from moesaic.nn.init import init_weights
from moesaic.optim.table import KEPT, build_optimizer
from moesaic.parallel.apply import apply_parallel, share_gradients
from moesaic.parallel.part import own_part, whole
from moesaic.train.step import train_step

Tensors = dict[str, dict[str, Tensor]]
_TIMEOUT_S = 300


def main() -> None:
    """Measure as asked."""
    request: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    keep_freed_memory()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    bench = _Bench(request)
    for _ in range(request["repeats"]):
        bench.measure_round()
    if bench.world.is_first:
        answer = {"bytes": bench.num_bytes, "seconds": bench.seconds, "reports": bench.reports}
        print(json.dumps(answer), flush=True)
    dist.barrier()
    dist.destroy_process_group()


class _Bench:
    """A training that can be saved, the same in another layout, and what was measured."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.world = World(dist.get_rank(), dist.get_world_size())
        self.seconds: dict[str, list[float]] = {}
        self.reports: list[dict[str, Any]] = []
        self._folder = Path(request["folder"])
        sections = {
            "model": request["model"],
            "data": {"source": "nothing", "sequence_length": request["tokens"] // self.world.size},
            "train": {"out": "nowhere", "steps": 1000, "batch_size": self.world.size, "precision": "float32"},
        }
        self._config = check_section(RunConfig, sections, "bench")
        self._together = Agreement(self.world)
        size = self.world.size
        self._model, mesh = self._build(size, 1)
        self._gradients = share_gradients(self._model, mesh, self._config.parallel.bucket_bytes)
        self._optimizer = build_optimizer(self._model, self._config.optim)
        self._number = 0
        self._step()
        self._tensors = self._state(self._model, self._optimizer)
        other, _ = self._build(1, size)
        self._other = self._state(other, None)
        everything = {
            folder: {name: whole(each).detach() for name, each in own.items()} for folder, own in self._tensors.items()
        }
        self.num_bytes = sum(each.nbytes for own in everything.values() for each in own.values())
        self._whole = everything if self.world.is_first else {}
        self._alone = {
            folder: {name: torch.empty_like(each) for name, each in own.items()} for folder, own in self._whole.items()
        }
        store = CheckpointStore(self._folder / "checkpoints", 1, False)
        self._path = store.folder / "step-00000001"
        self._at_once = Saver(store, self._together, asynchronous=False)
        apart = Agreement.apart(self.world, _TIMEOUT_S)
        self._beside = Saver(store, apart, report=self.reports.append)
        self._optimizer.register_step_pre_hook(lambda *_: self._beside.wait_copied())
        self._check_equal()

    def measure_round(self) -> None:
        """Measure everything once, in turns."""
        file = self._folder / "whole.pt"
        self._time("torch_save", lambda: torch.save(self._whole, file), only_first=True)
        self._time("save", lambda: self._at_once.begin(self._collect))
        self._measure_asynchronous()
        for cache in ("cold", "warm"):
            for name, work, only_first in (
                ("torch_load", lambda: torch.load(file, weights_only=True), True),
                ("load", lambda: restore_tensors(self._path, self._other, self._together), False),
                ("load_alone", lambda: restore_tensors(self._path, self._alone, Agreement()), True),
            ):
                self._prepare_cache(cache, file if name == "torch_load" else self._path)
                self._time(f"{cache}_{name}", work, only_first)

    def _measure_asynchronous(self) -> None:
        # The memory to copy to is there from the first save on.
        self._beside.begin(self._collect)
        self._beside.wait()
        dist.barrier()
        began = time.perf_counter()
        self._beside.begin(self._collect)
        self._beside.wait_copied()
        self._note("stall_at_rest", time.perf_counter() - began)
        self._beside.wait()
        self._time("step", self._step)
        self.reports.clear()
        self._beside.begin(self._collect)
        self._time("step_beside", self._step)
        self._beside.wait()
        self.seconds.setdefault("stall", []).extend(row["seconds"]["stall"] for row in self.reports[-1:])

    def _prepare_cache(self, cache: str, path: Path) -> None:
        dist.barrier()
        if self.world.is_first:
            drop_cached([path])
            if cache == "warm":
                for each in path.rglob("*") if path.is_dir() else [path]:
                    if each.is_file():
                        _read_through(each)

    def _time(self, name: str, work: Callable[[], object], only_first: bool = False) -> None:
        """Note what the slowest rank takes."""
        dist.barrier()
        began = time.perf_counter()
        if self.world.is_first or not only_first:
            work()
        self._note(name, time.perf_counter() - began)

    def _note(self, name: str, seconds: float) -> None:
        longest = torch.tensor(seconds, dtype=torch.float64)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        self.seconds.setdefault(name, []).append(float(longest))

    def _build(self, data_shard: int, expert: int) -> tuple[LanguageModel, Any]:
        mesh = build_mesh(self.world.size // data_shard, data_shard, expert)
        config = self._config.model
        model = apply_parallel(build_model(config, device="meta"), mesh).to_empty(device="cpu")
        init_weights(model, config, 0, own_part)
        return model, mesh

    def _state(self, model: LanguageModel, optimizer: torch.optim.Optimizer | None) -> Tensors:
        """Return weights and moments; without an optimizer, room for them."""
        moments = {}
        for name, parameter in model.named_parameters():
            for key in KEPT["adamw"]:
                empty = torch.zeros(()) if key == "step" else torch.empty_like(parameter.detach())
                moments[f"{name}/{key}"] = empty if optimizer is None else optimizer.state[parameter][key]
        return {"model": model.state_dict(), "optimizer": moments}

    def _collect(self) -> Snapshot:
        return Snapshot({"step": 1}, self._state(self._model, self._optimizer))

    def _step(self) -> None:
        self._number += 1
        source = torch.Generator().manual_seed(self._number)
        shape = (self.world.size, self._config.data.sequence_length + 1)
        ids_BS = torch.randint(self._config.model.vocab_size, shape, generator=source)
        batch = Batch(ids_BS[:, :-1], ids_BS[:, 1:], None, None, 0, (("tokens", "drawn"),))
        train_step(self._model, self._optimizer, batch, self._number, self._config, self.world, self._gradients)

    def _check_equal(self) -> None:
        """Save, load at the other layout, and compare; a difference ends the run."""
        self._at_once.begin(self._collect)
        restore_tensors(self._path, self._other, self._together)
        for folder, own in self._other.items():
            for name, each in own.items():
                found = whole(each)
                same = not self.world.is_first or torch.equal(found, self._whole[folder][name])
                assert same, f"'{name}' is what was saved"


def _read_through(file: Path) -> None:
    with file.open("rb", buffering=0) as content:
        while content.read(2**22):
            pass


if __name__ == "__main__":
    main()
