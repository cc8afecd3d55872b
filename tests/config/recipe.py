"""A small recipe, as a file and as a tree."""

import copy
from pathlib import Path
from typing import Any

import tomli_w

_RECIPE: dict[str, dict[str, Any]] = {
    "model": {
        "vocab_size": 300,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "data": {"source": "text.txt", "sequence_length": 32},
    "train": {"out": "runs/first", "steps": 100, "batch_size": 8},
}


def recipe_tree(**changes: Any) -> dict[str, Any]:
    """Return the recipe with some of its sections' keys changed: `train={"steps": 5}`."""
    tree = copy.deepcopy(_RECIPE)
    for section, fields in changes.items():
        tree.setdefault(section, {}).update(fields)
    return tree


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Write the recipe as a TOML file."""
    path = folder / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe_tree(**changes)))
    return path
