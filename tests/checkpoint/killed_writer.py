"""A process that writes folders without end, killed at random moments. Run as a program by test_kill.py.

For each round it prints how often the folder was gone while it was written and what it held after the kill, before
anybody tidied up, what else lay beside it, and what was left of that once the next writer had tidied up.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from moesaic.checkpoint.atomic import atomic_folder, remove_leftovers, write_tensors


def write_number(folder: Path, number: int) -> None:
    """Write a folder of two files that tell the same number."""
    with atomic_folder(folder) as target:
        write_tensors(target / "number.safetensors", {"number": torch.full((20_000,), number)})
        (target / "number.json").write_text(json.dumps(number))


def read_number(folder: Path) -> int:
    """Return the number of a folder, which must be whole."""
    values = load_file(folder / "number.safetensors")["number"].unique().tolist()
    number = json.loads((folder / "number.json").read_text())
    assert values == [number], f"{values} beside {number}"
    assert len(list(folder.iterdir())) == 2
    return number


def times_gone(folder: Path, seconds: float) -> int:
    """Look at a name over and over; return how often nothing had it."""
    end, gone = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        gone += not os.access(folder, os.F_OK)
    return gone


def names(parent: Path) -> list[str]:
    """List what lies in a folder."""
    return sorted(path.name for path in parent.iterdir())


def main(parent: Path, rounds: int) -> None:
    """Write, kill, look, `rounds` times."""
    chance, number = random.Random(0), 0
    write_number(parent / "model", number)
    for _ in range(rounds):
        child = os.fork()
        if child == 0:
            while True:
                number += 1
                write_number(parent / "model", number)
        gone = times_gone(parent / "model", chance.uniform(0.001, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        number = read_number(parent / "model")
        found = names(parent)
        remove_leftovers(parent)
        print(json.dumps({"gone": gone, "number": number, "found": found, "kept": names(parent)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
