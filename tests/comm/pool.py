"""Processes that have met over gloo and run a function of a test, all of them at once.

They start once for many tests: a process takes seconds to load torch.
"""

import functools
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moesaic.comm import mesh

_TIMEOUT_S = 60
Pools = Callable[[int], "Pool"]


class Pool:
    """So many ranks."""

    def __init__(self, size: int) -> None:
        self.size = size
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        meeting = Path(self._folder.name) / "meeting"
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, meeting, rank, size), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a function of a module in every rank, and return what each returned; the first failure is raised."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for pipe in self._pipes:
            assert pipe.poll(2 * _TIMEOUT_S), "a rank does not answer"
            answers.append(pipe.recv())
        for rank, (_, failure) in enumerate(answers):
            assert failure is None, f"rank {rank}: {failure}"
        return [result for result, _ in answers]

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(10)
            process.kill()
        self._folder.cleanup()


def _serve(pipe: Connection, meeting: Path, rank: int, size: int) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=_TIMEOUT_S)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size, timeout=timeout)
    # Each group has threads, which wake a hundred times a second: those of one shape are met once.
    made = functools.cache(mesh.init_device_mesh)
    mesh.init_device_mesh = lambda device, sizes, mesh_dim_names: made(device, sizes, mesh_dim_names=mesh_dim_names)
    mesh._new_group = functools.cache(mesh._new_group)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            torch.manual_seed(0)
            pipe.send((function(*arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
