"""`moesaic demo` tells the whole story, and what it says to do next can be done."""

import re
import shlex
from pathlib import Path

import pytest

from moesaic.cli.demo import demo_recipe
from moesaic.train.run import Outcome
from moesaic.train.run_folder import RunFolder
from tests.cli.command import Run

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_demo_trains_generates_and_names_next_commands_that_work_when_run(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESAIC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "demo"
    answer = cli("demo", "--steps", 2, "--out", folder)
    assert (answer.code, answer.out) == (0, "")
    for part in (
        "1/4",
        "2/4",
        "3/4",
        "4/4",
        "the same text, to the last character",
        "held-out loss, bigram",
        "held-out loss, this model",
        "def __init__(self, ",
    ):
        assert part in answer.err, part
    assert "def __init__(self, " in (folder / "report.html").read_text()

    followed = dict(re.findall(r"^  (look|generate|exchange|train) +(.*)$", answer.err, re.MULTILINE))
    assert followed.keys() == {"look", "generate", "exchange", "train"}
    assert Path(followed["look"].split()[1]).is_file()
    assert cli(*shlex.split(followed["generate"])[1:], "--max-tokens", 2).code == 0
    model = re.search(r"'(.*)'", followed["exchange"])
    assert model is not None
    assert (Path(model[1]) / "config.json").is_file()
    words = shlex.split(followed["train"].replace("YOUR_FOLDER", str(tmp_path / "none")))
    assert (ROOT / words[2]).is_file()
    monkeypatch.chdir(ROOT)
    assert "no file or folder at" in cli(*words[1:]).err


def test_demo_exits_130_when_it_is_interrupted(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moesaic.train import run

    stopped = Outcome(RunFolder(tmp_path), "SIGINT", False, {})
    monkeypatch.setattr(run, "train", lambda config, console: stopped)
    assert cli("demo", "--out", tmp_path).code == 130


@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_recipe_of_the_demo_is_valid_when_it_has(steps: int, tmp_path: Path) -> None:
    config = demo_recipe(tmp_path, steps)
    assert (config.train.steps, config.data.source) == (steps, "python-stdlib")
