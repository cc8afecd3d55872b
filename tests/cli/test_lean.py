"""Help and mistakes in a recipe are told without loading torch."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from moesaic.cli.main import main
try:
    main()
except SystemExit as end:
    loaded = [name for name in ("torch", "transformers", "matplotlib", "numpy") if name in sys.modules]
    print("ended", end.code, *loaded)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["doctor", "--help"], 0),
        (["plan", "--help"], 0),
        (["bench", "train", "--help"], 0),
        (["bench", "comm", "--help"], 0),
        (["train", "recipe.toml", "--schedule", "3"], 2),
        (["train", "nowhere.toml"], 2),
        (["plan", "nowhere.toml"], 2),
        (["plan", "m", "--memory", "much"], 2),
        (["train", "recipe.toml", "--set", "model.hidden_sise=3"], 2),
        (["train", "recipe.toml", "--set", "model.num_experts_per_tok=99"], 2),
        (["convert", "a", "."], 2),
    ],
)
def test_no_large_library_is_loaded_when_asked_for(arguments: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[model]\npreset = "tiny"\n[data]\nsource = "x"\n[train]\nout = "run"\n')
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == f"ended {code}", done.stderr
