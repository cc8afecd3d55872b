"""The generated reference of recipe keys, and the recipes."""

from pathlib import Path

import pytest

from moesaic.cli.train import load_run
from moesaic.config.describe import describe_recipe

ROOT = Path(__file__).parents[2]


def test_recipe_reference_is_current_when_regenerated() -> None:
    assert (ROOT / "docs/recipe.md").read_text() == describe_recipe()


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_loads_when_shipped(recipe: Path) -> None:
    config = load_run(recipe, [])
    assert config.train.out == f"runs/{recipe.stem}"
