"""`moesaic bench`: measure against peers, in one run."""

import json
import re
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


@bench_app.command("checkpoint")
def bench_checkpoint(
    repeats: int = typer.Option(5, min=3, help="Rounds."),
    out: Path | None = _OUT,
    ranks: int = typer.Option(2, min=2, help="Processes that save and load."),
    folder: Path | None = typer.Option(None, help="Where the files go, 3 GB; unset: the folder of temporary files."),
) -> None:
    """Save and load 1 GB of training state, against torch.save and torch.load; the last line is one JSON object."""
    _check_out(out)
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--folder '{folder}' is no folder", "make it first")
    from moesaic.bench.checkpoint import bench_checkpoint as run

    with error_console().status("saving and loading"):
        result = run(ranks, repeats, folder)
    result["command"] = f"moesaic bench checkpoint --repeats {repeats} --ranks {ranks}"
    _print_checkpoint(result)
    _give(result, out)


@bench_app.command("scale")
def bench_scale(
    ranks: str = typer.Option("1,2,4,8", help="Numbers of processes to train with here, ascending."),
    steps: int = typer.Option(10, min=3, help="Steps of each run that are timed."),
    out: Path | None = _OUT,
    plot: Path | None = typer.Option(None, help="Also draw published and predicted rates, an SVG file."),
) -> None:
    """Time steps as ranks grow, and predict those of clusters; the last line is one JSON object."""
    _check_out(out)
    _check_out(plot)
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)+", ranks):
        raise ConfigError(f"--ranks '{ranks}' is no list of numbers", "such as 1,2,4,8")
    numbers = sorted({int(each) for each in ranks.split(",")})
    from moesaic.bench.scale import bench_scale as run

    with error_console().status("") as status:
        result = run(numbers, steps, status.update)
    result["command"] = f"moesaic bench scale --ranks {ranks} --steps {steps}"
    _print_scale(result)
    if plot is not None:
        from moesaic.bench.scale_plot import draw_scale

        draw_scale(result["published"], plot)
    _give(result, out)


@bench_app.command("comm")
def bench_comm(
    ranks: int = typer.Option(2, min=1, help="Processes to start; under torchrun, those that it has started."),
    repeats: int = typer.Option(10, min=3, help="Measurements of each candidate."),
    out: Path | None = _OUT,
    case: list[str] = typer.Option([], help="Only this one; may be given again. Default: all."),
) -> None:
    """Time messages between processes, in one hop and two, fused and not, and a mixture in chunks."""
    _check_out(out)
    from moesaic.bench.comm import CASES, Asked, bench_rank, is_rank
    from moesaic.bench.comm import bench_comm as run

    unknown = [name for name in case if name not in CASES]
    if unknown:
        raise ConfigError(f"unknown case '{unknown[0]}'", f"accepted: {', '.join(CASES)}")
    asked = Asked(ranks, repeats, tuple(case or CASES))
    with error_console().status("") as status:
        result = bench_rank(asked, status.update) if is_rank() else run(asked, status.update)
    if result is None:  # the first rank tells
        return
    words = "".join(f" --case {name}" for name in case)
    result["command"] = f"moesaic bench comm --ranks {result['machine']['ranks']} --repeats {repeats}{words}"
    _print_comm(result)
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


def _print_checkpoint(result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("what", "ms", "+-", title=f"1 GB of state, {result['machine']['ranks']} ranks")
    for name, times in result["cases"][0]["times"].items():
        table.add_row(name, f"{times['median_ms']:.1f}", f"{times['iqr_ms']:.1f}")
    _print_with_targets(table, {case["name"]: case["targets"] for case in result["cases"]})


def _print_scale(result: dict[str, Any]) -> None:
    from rich.table import Table

    here = Table("ranks", "ms a step", "predicted", "", title=f"here, {result['here']['cores']} cores")
    for row in result["here"]["rows"]:
        here.add_row(str(row["ranks"]), f"{1e3 * row['step_s']:.0f}", f"{1e3 * row['predicted_s']:.0f}", row["is"])
    error_console().print(here)
    for system in result["published"]:
        table = Table("GPUs", "published tokens/s", "predicted", "in two hops", "", title=system["system"])
        for row in system["rows"]:
            keys = ("published_tokens_per_s", "predicted_tokens_per_s", "predicted_in_two_hops")
            cells = [row.get(key) for key in keys]
            table.add_row(f"{row['gpus']:,}", *("" if cell is None else f"{cell:,}" for cell in cells), row["is"])
        error_console().print(table)


def _print_comm(result: dict[str, Any]) -> None:
    from rich.table import Table

    machine, cases = result["machine"], result["cases"]
    table = Table("what", "ms", title=f"{machine['ranks']} ranks, {machine['nodes']} machines")
    for row in cases.get("all_to_all", []):
        for name, each in row["ms"].items():
            table.add_row(f"{name} all-to-all, {row['bytes_a_pair']} bytes a pair", f"{each:.3f}")
    for row in cases.get("buckets", []):
        name = row["bucket_bytes"] if row["bucket_bytes"] == "unfused" else f"buckets of {row['bucket_bytes']} bytes"
        table.add_row(f"sum of {row['bytes']} bytes, {name}: {row['collectives']} messages", f"{row['ms']:.1f}")
    if "chunks" in cases:
        chunks = cases["chunks"]
        for degree, each in chunks["ms"].items():
            marks = [word for word in ("chosen", "best") if chunks[word] == int(degree)]
            told = f" ({', '.join(marks)})" if marks else ""
            table.add_row(f"layer of {chunks['T']} tokens in {degree} chunks{told}", f"{each:.1f}")
    for name, each in cases.get("gradients", {"ms": {}})["ms"].items():
        table.add_row(f"small model, {name}", f"{each:.1f}")
    for name, each in cases.get("embedding", {"rows": {}})["rows"].items():
        kept, most = (f"{each[key] / 2**20:,.0f} MiB" for key in ("state_bytes", "peak_bytes"))
        table.add_row(f"embedding and head {name}: {kept} of state, at most {most} in a step", f"{each['ms']:,.1f}")
    fits = {machine["ranks"]: cases["fits"]} if "fits" in cases else {}
    for ranks, costs in cases.get("growth", fits).items():
        for name, cost in costs.items():
            line = f"{cost['alpha_s'] * 1e3:.3f} + {cost['beta_s'] * 2**20 * 1e3:.3f} a MiB"
            table.add_row(f"{name}, {ranks} ranks", line)
    _print_with_targets(table, {"comm": result["targets"]})
    for line in cases.get("chunks", {}).get("profile", []):
        error_console().print(line)


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
