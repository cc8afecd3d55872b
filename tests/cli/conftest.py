"""Recipes as files, and a run that is finished."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tomli_w

from moesaic.train.run import train
from tests.cli.command import Run, run_here
from tests.train.tiny_run import Changes, tiny_run, tiny_tree

RecipeFile = Callable[..., Path]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function from arguments to what the command left."""
    return partial(run_here, capsys)


@pytest.fixture
def recipe_file(text: Path, tmp_path: Path) -> RecipeFile:
    """A function that writes a recipe with some keys changed, its run folder beside it."""

    def write(changes: Changes | None = None, name: str = "run") -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(tomli_w.dumps(tiny_tree(text, tmp_path / name, changes)))
        return path

    return write


@pytest.fixture(scope="session")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended; not to be written to."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return train(tiny_run(text, out)).folder.path


@pytest.fixture
def chatting(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's model that has a chat template."""
    folder = tmp_path / "chat"
    shutil.copytree(finished / "model", folder)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}:{% endfor %}")
    return folder
