"""Recipes of tiny runs, without the cost of a report."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.config.run import RunConfig
from moesaic.train import finish
from tests.train.tiny_run import Changes, tiny_run

Recipe = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the charts takes longer than a tiny run; one test of the loop asks for the real report."""
    monkeypatch.setattr(finish, "write_report", lambda name, rows, config, summary, path: path.write_text(name))


@pytest.fixture
def recipe(text: Path, tmp_path: Path) -> Recipe:
    """A function from changes by dotted key, and the name of the run folder, to a recipe."""

    def build(changes: Changes | None = None, out: str = "run") -> RunConfig:
        return tiny_run(text, tmp_path / out, changes)

    return build
