"""A process that repacks a model and kills its copies at every step. Run as a program by test_repack_kill.py.

For each step that changes the disk, a copy is killed just before it, and another one goes on. Printed is for each what
was found after the kill, how many files of tensors the second one wrote, and whether what it left is as it should be.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from moesaic.checkpoint import dense_core, repack, tensor_file
from moesaic.checkpoint.repack import repack_model
from moesaic.checkpoint.stored import open_model

# What changes the disk: to flush, to rename, to remove.
STEPS = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir")]


def in_child(*actions: Callable[[], object]) -> int:
    """Do something in a copy of this process; return its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            for action in actions:
                action()
        except BaseException as failure:
            print(failure, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_before(step: int) -> None:
    """Kill this process before a step of so many."""
    left = step

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*arguments, **options)

        return call

    for owner, name in STEPS:
        setattr(owner, name, counted(getattr(owner, name)))


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def count_files(counter: Path) -> None:
    """Write a letter for each file of tensors that this process writes."""
    real = tensor_file.write_tensor_file

    def write(path: Path, *rest: Any) -> list[int]:
        with counter.open("a") as stream:
            stream.write("x")
        return real(path, *rest)

    repack.write_tensor_file = dense_core.write_tensor_file = write


def main(parent: Path, bits: int | None) -> None:
    """Kill before the first step, the second, until a copy ends by itself. With bits the dense core is rounded too."""
    torch.set_num_threads(1)
    source, target, counter = parent / "source", parent / "target", parent / "counter"
    run = partial(repack_model, source, target, bits, core_bits=None if bits is None else 8)
    open_model(source)  # what torch loads for it, the copies need not
    assert in_child(run) == 0
    expected = contents(target)
    shutil.rmtree(target)
    for step in count():
        status = in_child(partial(kill_before, step), run)
        found = sorted(path.name for path in parent.iterdir())
        if not target.exists():
            assert in_child(lambda: count_files(counter), run) == 0
        written = counter.read_text() if counter.exists() else ""
        print(json.dumps({"found": found, "written": len(written), "same": contents(target) == expected}))
        if status == 0:
            return
        assert status == -signal.SIGKILL, status
        counter.unlink(missing_ok=True)
        for folder in {target, *parent.glob(".*")}:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) or None)
