"""`moesaic train`: run a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from moesaic.cli.output import error_console
from moesaic.errors import EXIT_INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from moesaic.config.run import RunConfig


def train(
    recipe: Path = typer.Argument(help="A TOML recipe, such as recipes/tiny.toml."),
    overrides: list[str] = typer.Option(
        [], "--set", metavar="SECTION.KEY=VALUE", help="Change a key of the recipe; may be given again."
    ),
    resume: str = typer.Option(
        "auto", help="auto: go on from the last checkpoint if there is one; never; or a checkpoint's path."
    ),
    schedule: str | None = typer.Option(
        None, metavar="auto|off|1|2|4|8", help="Chunks that a layer's tokens travel in; sets parallel.schedule."
    ),
) -> None:
    """Train a model: `moesaic train recipes/tiny.toml --set train.steps=100`."""
    config = load_run(recipe, overrides if schedule is None else [*overrides, f"parallel.schedule={schedule}"])
    from moesaic.train.run import train as run

    console = error_console()
    outcome = run(config, resume, console)
    if outcome.interrupted is not None:
        raise typer.Exit(EXIT_INTERRUPTED)
    summary = outcome.summary
    if not summary:  # the first process of the run tells
        return
    if summary["held_out_loss"] is not None:
        console.print(f"held-out loss {summary['held_out_loss']:.3f} nats a token")
    reader = "transformers and moesaic load it" if outcome.transformers_can_load else "moesaic loads it"
    console.print(f"model   {outcome.folder.model} ({reader})")
    console.print(f"report  {outcome.folder.report}")


def load_run(recipe: Path, overrides: list[str]) -> "RunConfig":
    """Read a recipe with its overrides; presets, families and `train.init_from` are filled in."""
    from moesaic.config.load import load_recipe

    return load_recipe(recipe, overrides, _expand)


def _expand(tree: dict[str, Any]) -> dict[str, Any]:
    from moesaic.models.table import expand_model

    start = tree.get("train", {}).get("init_from") if isinstance(tree.get("train"), dict) else None
    # A section that is none is left to the check of the whole.
    if start is not None and all(isinstance(tree.get(name, {}), dict) for name in ("model", "tokenizer")):
        tree = _start_from(tree, str(start))
    if isinstance(tree.get("model"), dict):
        tree["model"] = expand_model(tree["model"])
    return tree


def _start_from(tree: dict[str, Any], start: str) -> dict[str, Any]:
    """Take the model section and the tokenizer from the checkpoint that a run starts from."""
    from moesaic.checkpoint.folder import find_model, find_tokenizer, load_config

    model, tokenizer = tree.get("model", {}), tree.get("tokenizer", {})
    if "preset" in model:
        raise ConfigError("model.preset and train.init_from both give the model", "leave out one of them")
    folder = find_model(start)
    fields = load_config(folder).model_dump()
    return {**tree, "model": {**fields, **model}, "tokenizer": {"path": str(find_tokenizer(folder)), **tokenizer}}
