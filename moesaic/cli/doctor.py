"""`moesaic doctor`: what this machine computes with, and why with nothing better."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import typer

from moesaic.cli.output import error_console, print_json
from moesaic.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Packages that one can do without, and what for they are.
_OPTIONAL = {
    "transformers": "our experts inside transformers; the peer of `moesaic bench`",
    "triton": "kernels on a GPU",
    "datasets": "training on parquet files and hub datasets",
    "tensorboard": "logs for TensorBoard",
}
_NOT_BUILT = "compiled kernels: missing, so torch computes, several times slower"
_HOW_TO_BUILD = "install a C++ compiler (Debian: apt install g++), then moesaic again: pip install --force-reinstall ."


def doctor(as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of tables.")) -> None:
    """Show the machine, its instruction sets and what computes each operation, with the reasons: `moesaic doctor`."""
    facts = _examine()
    if as_json:
        print_json(facts)
        return
    console = error_console()
    console.stderr = False
    _print(facts, console)


def _examine() -> dict[str, Any]:
    from moesaic.bench.measure import describe_machine
    from moesaic.hw.memory import available_bytes
    from moesaic.ops.diagnosis import examine_operations

    return {
        "machine": {**describe_machine(), "cores": os.cpu_count(), "memory_bytes": available_bytes()},
        **examine_operations(),
        "packages": [{"name": name, "version": _version(name), "for": use} for name, use in _OPTIONAL.items()],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(facts: dict[str, Any], console: "Console") -> None:
    machine = dict(facts["machine"])
    machine["memory available"] = format_bytes(machine.pop("memory_bytes"))
    machine["gpu"] = facts["gpu"] or "none that torch can use"
    table = _table("machine", "")
    for key, value in machine.items():
        table.add_row(key.replace("_", " "), str(value))
    console.print(table, "")
    _print_instruction_sets(facts, console)

    table = _table("operation", "device", "dtype", "computed by", "and not by")
    for row in facts["operations"]:
        names = list(row["refusals"])  # best first
        reasons = (f"{name}: {row['refusals'][name]}" for name in names[: names.index(row["chosen"])])
        table.add_row(row["operation"], row["device"], row["dtype"], row["chosen"], "; ".join(reasons))
    console.print("", table, "")

    table = _table("optional package", "version", "for")
    for each in facts["packages"]:
        table.add_row(each["name"], each["version"] or "not installed", each["for"])
    console.print(table)


def _print_instruction_sets(facts: dict[str, Any], console: "Console") -> None:
    if not facts["kernels_built"]:
        console.print(_NOT_BUILT)
        console.print(f"  {_HOW_TO_BUILD}")
        return
    table = _table("instruction set", "runs here")
    for each in facts["instruction_sets"]:
        answer = "yes, and is used" if each["name"] == facts["instruction_set"] else "yes"
        table.add_row(each["name"], f"no: {each['refusal']}" if each["refusal"] else answer)
    console.print(table)
    if facts["instruction_set_refusal"]:
        console.print(facts["instruction_set_refusal"])


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.columns[0].no_wrap = True
    return table
