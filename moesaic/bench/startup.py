"""How long the command line takes to answer when it has nothing to compute."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from moesaic.bench.measure import measure, summarise

_COMMANDS = {
    "import moesaic": [sys.executable, "-c", "import moesaic"],
    "moesaic --help": [sys.executable, "-m", "moesaic", "--help"],
    "a misspelt key": [sys.executable, "-m", "moesaic", "train", "RECIPE", "--set", "model.hiden_size=3"],
    "python -c pass": [sys.executable, "-c", "pass"],
}
_RECIPE = '[model]\npreset = "tiny"\n[data]\nsource = "x"\n[train]\nout = "run"\nsteps = 1\nbatch_size = 1\n'


def bench_startup(repeats: int) -> dict[str, Any]:
    """Time fresh interpreters, taking turns; the last one is Python's own share."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(_RECIPE)

        def run(command: list[str]) -> None:
            words = [str(recipe) if word == "RECIPE" else word for word in command]
            subprocess.run(words, capture_output=True, check=False)

        candidates = {name: lambda command=command: run(command) for name, command in _COMMANDS.items()}
        return {name: summarise(times) for name, times in measure(candidates, repeats, warmup=1).items()}
