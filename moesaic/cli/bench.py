"""`moesaic bench`: measure against peers, in one run."""

import json
from pathlib import Path
from typing import Any

import typer

from moesaic.cli.output import error_console, print_json
from moesaic.errors import ConfigError
from moesaic.flush import replace_text

bench_app = typer.Typer(name="bench", help="Measure against peers: same work, same run, medians.")


@bench_app.callback()
def options() -> None:
    """Measure against peers: same work, same run, medians."""


@bench_app.command("train")
def bench_train(
    repeats: int = typer.Option(20, min=3, help="Measurements of each candidate."),
    out: Path | None = typer.Option(None, help="Also write the result to this file."),
) -> None:
    """Time training steps against transformers; the last line is one JSON object."""
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out '{out}' lies in no folder", "make the folder first")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out '{out}' is a folder", "name a file in it")
    from moesaic.bench.train import bench_train as run

    result = {**run(repeats), "command": f"moesaic bench train --repeats {repeats}"}
    _print_table(result)
    if out is not None:
        replace_text(out, json.dumps(result, indent=1) + "\n")
    print_json(result)


def _print_table(result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("case", "T D F E K", "dtype", "moesaic ms", "transformers ms", "dense ms", "transformers / moesaic")
    for case in result["cases"]:
        times = {name: f"{each['median_ms']:.1f}" for name, each in case["times"].items()}
        shape = " ".join(str(case[letter]) for letter in "TDFEK")
        ratio = f"{case['over_transformers']:.2f}"
        row = (
            case["level"],
            shape,
            case["dtype"],
            times["moesaic"],
            times["transformers"],
            times.get("dense", ""),
            ratio,
        )
        table.add_row(*row)
    error_console().print(table)
