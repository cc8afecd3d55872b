"""`moesaic bench`: measure against peers, in one run."""

import json
import re
from pathlib import Path
from typing import Any

import typer

from moesaic.cli.output import error_console, print_json, progress_bar
from moesaic.errors import ConfigError
from moesaic.flush import replace_text

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
    from moesaic.cli.bench_table import print_train

    result = {**run(repeats), "command": f"moesaic bench train --repeats {repeats}"}
    print_train(result)
    _give(result, out)


def _bench_ranks(num_ranks: int, repeats: int, peers: Path, out: Path | None) -> None:
    from moesaic.bench.ranks import bench_ranks as run
    from moesaic.cli.bench_table import print_ranks

    with error_console().status("") as status:
        result = run(num_ranks, repeats, peers, status.update)
    result["command"] = f"moesaic bench train --ranks {num_ranks} --repeats {repeats}"
    print_ranks(result)
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
    from moesaic.cli.bench_table import print_ops

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
    print_ops(result)
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
    from moesaic.cli.bench_table import print_infer

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
    print_infer(result)
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
    from moesaic.cli.bench_table import print_checkpoint

    with error_console().status("saving and loading"):
        result = run(ranks, repeats, folder)
    result["command"] = f"moesaic bench checkpoint --repeats {repeats} --ranks {ranks}"
    print_checkpoint(result)
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
    from moesaic.cli.bench_table import print_scale

    with error_console().status("") as status:
        result = run(numbers, steps, status.update)
    result["command"] = f"moesaic bench scale --ranks {ranks} --steps {steps}"
    print_scale(result)
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
    from moesaic.cli.bench_table import print_comm

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
    print_comm(result)
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
