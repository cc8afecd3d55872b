"""How long the command line takes to answer when it has nothing to compute."""

import subprocess
import sys
from typing import Any

from moesaic.bench.measure import measure, summarise

_COMMANDS = {
    "import moesaic": [sys.executable, "-c", "import moesaic"],
    "moesaic --help": [sys.executable, "-m", "moesaic", "--help"],
    "a recipe that is not there": [sys.executable, "-m", "moesaic", "train", "nowhere.toml"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def bench_startup(repeats: int) -> dict[str, Any]:
    """Time fresh interpreters, taking turns; the last one is Python's own share."""

    def run(command: list[str]) -> None:
        subprocess.run(command, capture_output=True, check=False)

    candidates = {name: lambda command=command: run(command) for name, command in _COMMANDS.items()}
    return {name: summarise(times) for name, times in measure(candidates, repeats, warmup=1).items()}
