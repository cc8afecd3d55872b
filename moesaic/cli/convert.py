"""`moesaic convert`: write a checkpoint in another layout."""

from enum import StrEnum
from pathlib import Path

import typer

from moesaic.cli.output import error_console
from moesaic.errors import ConfigError


class Layout(StrEnum):
    """Layouts that can be written."""

    hf = "hf"


def convert(
    source: str = typer.Argument(help="A model folder, a run folder, a checkpoint of a run, or a hub id."),
    target: Path = typer.Argument(help="The folder to write; must not exist."),
    to: Layout = typer.Option(Layout.hf, help="hf: a Hugging Face folder."),
    dtype: str | None = typer.Option(None, help="bfloat16, float16 or float32; default: as stored."),
) -> None:
    """Write a Hugging Face folder: `moesaic convert runs/tiny/checkpoints/step-00000100 out --to hf`."""
    if target.exists():
        raise ConfigError(f"'{target}' exists already", "choose a new folder")
    from moesaic.checkpoint.convert import convert_to_hf

    known = convert_to_hf(source, target, dtype)
    reader = (
        "transformers and moesaic load it" if known else "no family of transformers says all of it; moesaic loads it"
    )
    error_console().print(f"wrote {target} ({reader})")
