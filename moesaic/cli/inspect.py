"""`moesaic inspect`: what a checkpoint holds."""

import typer

from moesaic.cli.output import error_console, print_json
from moesaic.units import format_bytes, format_count


def inspect(
    model: str = typer.Argument(help="A Hugging Face folder, a run folder, a checkpoint of a run, or a hub id."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of a table."),
) -> None:
    """Show a checkpoint's family, sizes and where its bytes are: `moesaic inspect runs/tiny`."""
    from rich.table import Table

    from moesaic.checkpoint.inspect import inspect_checkpoint

    facts = inspect_checkpoint(model)
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        text = str(value)
        if key.endswith("_bytes"):
            text = format_bytes(value)
        elif key.endswith("parameters"):
            text = format_count(value)
        table.add_row(key.replace("_", " "), text)
    console = error_console()
    console.stderr = False
    console.print(table)
