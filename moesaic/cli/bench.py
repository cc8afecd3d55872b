"""`moesaic bench`: measure against peers, in one run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from moesaic.cli.output import error_console, print_json, progress_bar
from moesaic.errors import ConfigError
from moesaic.flush import replace_text

if TYPE_CHECKING:
    from rich.table import Table

bench_app = typer.Typer(name="bench", help="Measure against peers: same work, same run, medians.")
_REPEATS = typer.Option(20, min=3, help="Measurements of each candidate.")
_OUT = typer.Option(None, help="Also write the result to this file.")


@bench_app.callback()
def options() -> None:
    """Measure against peers: same work, same run, medians."""


@bench_app.command("train")
def bench_train(
    repeats: int = _REPEATS,
    out: Path | None = _OUT,
    ranks: int | None = typer.Option(
        None, min=2, help="Time a mixture over so many processes, against DeepSpeed-MoE, instead."
    ),
    peers: Path = typer.Option(".venv-peers", help="The environment that `make peers` makes, for DeepSpeed."),
) -> None:
    """Time training steps against transformers; the last line is one JSON object."""
    _check_out(out)
    if ranks is not None:
        _bench_ranks(ranks, repeats, peers, out)
        return
    from moesaic.bench.train import bench_train as run

    result = {**run(repeats), "command": f"moesaic bench train --repeats {repeats}"}
    _print_train(result)
    _give(result, out)


def _bench_ranks(num_ranks: int, repeats: int, peers: Path, out: Path | None) -> None:
    from moesaic.bench.ranks import bench_ranks as run

    with error_console().status("") as status:
        result = run(num_ranks, repeats, peers, status.update)
    result["command"] = f"moesaic bench train --ranks {num_ranks} --repeats {repeats}"
    _print_ranks(result)
    _give(result, out)


@bench_app.command("ops")
def bench_ops(
    repeats: int = _REPEATS,
    out: Path | None = _OUT,
    case: str = typer.Option("", metavar="WORDS", help="Only cases named so, such as 'forward olmoe T1'."),
    peers: Path = typer.Option(".venv-peers", help="The environment that `make peers` makes, for DeepSpeed."),
) -> None:
    """Time the mixture of experts against transformers, DeepSpeed and a dense MLP; the last line is one JSON object."""
    _check_out(out)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from moesaic.bench.ops import bench_ops as run

    console = error_console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        result = run(
            repeats,
            case,
            peers,
            lambda done, total, name: progress.update(task, completed=done, total=total, description=name),
        )
    result["command"] = f"moesaic bench ops --repeats {repeats}" + (f" --case '{case}'" if case else "")
    _print_ops(result)
    _give(result, out)


@bench_app.command("infer")
def bench_infer(
    repeats: int = typer.Option(1, min=1, help="Processes of each program; medians are taken."),
    out: Path | None = _OUT,
    case: list[str] = typer.Option([], help="Only this one; may be given again. Default: all."),
    trace: Path | None = typer.Option(None, help="A recorded routing, JSON lines, for the traced cases."),
    steps: int = typer.Option(24, min=4, help="Tokens that are generated in each case."),
    cache: Path = typer.Option(Path("bench-models"), help="Where the 14 GB model and its copy for llama.cpp are made."),
    peers: Path = typer.Option(".venv-peers", help="The environment that `make peers` makes, for llama.cpp."),
) -> None:
    """Generate from a model of OLMoE's size, within 4 GiB and without, beside llama.cpp and transformers."""
    _check_out(out)
    from moesaic.bench.generation import make_programs
    from moesaic.bench.infer import CASES, Work
    from moesaic.bench.infer import bench_infer as run

    unknown = [name for name in case if name not in CASES]
    if unknown:
        raise ConfigError(f"unknown case '{unknown[0]}'", f"accepted: {', '.join(CASES)}")
    console = error_console()
    with progress_bar("making the model") as show:
        programs = make_programs(cache, peers, show)
    work = Work(programs, trace, repeats, steps)
    with console.status("") as status:
        result = run(work, case or list(CASES), status.update)
    words = "".join(f" --case {name}" for name in case) + (" --trace FILE" if trace else "")
    result["command"] = f"moesaic bench infer --repeats {repeats} --steps {steps}{words}"
    _print_infer(result)
    _give(result, out)


def _check_out(out: Path | None) -> None:
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out '{out}' lies in no folder", "make the folder first")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out '{out}' is a folder", "name a file in it")


def _give(result: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        replace_text(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    print_json(result)


def _print_train(result: dict[str, Any]) -> None:
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


def _print_ops(result: dict[str, Any]) -> None:
    from rich.table import Table

    console = error_console()
    over = ("dense", "transformers", "deepspeed")
    table = Table("case", "ms", "GFLOP/s", *over, "% of bandwidth", title="moesaic, and its peers' times over ours")
    for case in result["cases"]:
        ours = case["times"]["moesaic"]
        cells = [ours["median_ms"], ours.get("gflop_per_s"), *(case.get(f"over_{name}") for name in over)]
        cells.append(case.get("percent_of_bandwidth"))
        table.add_row(case["name"], *("" if cell is None else f"{cell:,.2f}" for cell in cells))
    targets = Table("case", "figure", "limit", "found", "met", title="targets")
    for row in result["targets"]:
        found = row["reason"] if row["found"] is None else f"{row['found']:.2f}"
        limit = f"at {row['at']} {row['limit']:g}"
        targets.add_row(row["case"], row["figure"], limit, found, "yes" if row["met"] else "no")
    for each in (table, targets):
        each.columns[0].no_wrap = True
        console.print(each)
    if not str(result["machine"]["deepspeed"])[:1].isdigit():
        console.print(f"DeepSpeed: {result['machine']['deepspeed']}")


def _print_infer(result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("case", "program", "tokens/s", "prefill s", "hit rate", "share of limit", "disk GB/s")
    for case in result["cases"]:
        programs = {name: case[name] for name in ("moesaic", "llama", "transformers") if name in case}
        for name, rates in (programs or {"moesaic": case}).items():
            if "refused" in rates:
                table.add_row(case["name"], name, rates["refused"])
                continue
            keys = ("tokens_per_s", "prefill_s", "hit_rate", "share_of_limit", "disk_gb_per_s")
            cells = [rates.get(key) for key in keys]
            table.add_row(case["name"], name, *(f"{cell:.3g}" if isinstance(cell, float) else "" for cell in cells))
    _print_with_targets(table, {case["name"]: case.get("targets", []) for case in result["cases"]})


def _print_ranks(result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        "T D F E K, dtype", "program", "ms", "tokens/s", "peak MiB", title=f"{result['machine']['ranks']} ranks"
    )
    all_targets = {}
    for case in result["cases"]:
        name = " ".join(str(case[letter]) for letter in "TDFEK") + f", {case['dtype']}"
        name += f", {case['layers']} layers" if case["layers"] else ""
        all_targets[name] = case["targets"]
        for program, times in case["times"].items():
            rate, peak = case["tokens_per_s"][program], case["peak_mib"][program]
            table.add_row(name, program, f"{times['median_ms']:.1f}", f"{rate:,}", f"{peak:,.0f}")
    _print_with_targets(table, all_targets)


def _print_with_targets(table: "Table", all_targets: dict[str, list[dict[str, Any]]]) -> None:
    """Print a table, and below it the targets of each case."""
    from rich.table import Table

    targets = Table("case", "figure", "limit", "found", "met", title="targets")
    for name, rows in all_targets.items():
        for row in rows:
            found = "not measured" if row["found"] is None else f"{row['found']:.3g}"
            met = "yes" if row["met"] else "no"
            targets.add_row(name, row["figure"], f"at {row['at']} {row['limit']:g}", found, met)
    for each in (table, targets):
        each.columns[0].no_wrap = True
        error_console().print(each)
