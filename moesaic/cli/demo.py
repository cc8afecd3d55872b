"""`moesaic demo`: the whole story in minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from moesaic.cli.output import error_console
from moesaic.errors import EXIT_INTERRUPTED
from moesaic.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.console import Console

    from moesaic.config.run import RunConfig

PROMPTS = ("def __init__(self, ", "import ", "class Test")


def demo_recipe(out: Path, steps: int) -> "RunConfig":
    """Return the recipe of the demo: the preset tiny on the running Python's own library."""
    from moesaic.config.load import check_section
    from moesaic.config.run import RunConfig
    from moesaic.models.table import expand_model

    tree = {
        "model": expand_model({"preset": "tiny"}),
        "data": {"source": "python-stdlib", "sequence_length": 256},
        "optim": {"learning_rate": 1e-3},
        "train": {
            "out": str(out),
            "steps": steps,
            "batch_size": 4,
            "evaluate_every": max(1, steps // 5),
            "evaluate_batches": 32,
        },
    }
    return check_section(RunConfig, tree, "the demo's recipe")


def demo(
    out: Path = typer.Option(Path("runs/demo"), help="The run folder."),
    steps: int = typer.Option(1000, min=1, help="Training steps; fewer end sooner and learn less."),
) -> None:
    """Train a small mixture of experts on Python's own library, look at it, generate code, and page its experts."""
    config = demo_recipe(out, steps)
    console = error_console()
    console.print(
        "[bold]1/4[/bold] train a mixture of experts on the source text of this Python's library", markup=True
    )
    from moesaic.train.finish import write_run_report
    from moesaic.train.run import train

    outcome = train(config, console=console)
    if outcome.interrupted is not None:
        raise typer.Exit(EXIT_INTERRUPTED)
    summary = outcome.summary
    console.print("\n[bold]2/4[/bold] what it learnt", markup=True)
    _print_losses(console, summary)
    console.print("\n[bold]3/4[/bold] generate code with it", markup=True)
    summary["samples"], _ = _samples(outcome.folder.path)
    for sample in summary["samples"]:
        console.print(sample["prompt"], style="bold", end="")
        console.print(sample["text"])
        console.print("")
    console.print("[bold]4/4[/bold] generate the same with a third of its weights in memory", markup=True)
    summary["paging"] = _page(outcome.folder.path, summary["samples"])
    _print_paging(console, summary["paging"])
    write_run_report(outcome.folder, config, summary)
    _print_next(console, outcome.folder.path)


def _print_losses(console: "Console", summary: dict[str, Any]) -> None:
    console.print(
        f"{format_count(summary['tokens'])} tokens in {format_seconds(summary['seconds'])}; "
        f"{format_count(summary['parameters'])} parameters, "
        f"{format_count(summary['active_parameters'])} active for a token"
    )
    losses = {**summary["baselines"], "this model": summary["held_out_loss"]}
    for name, loss in losses.items():
        console.print(f"  held-out loss, {name:<10}  {loss:.3f} nats a token")


def _samples(folder: Path, memory: int | None = None) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Return answers to the prompts, and what the experts did meanwhile."""
    from moesaic.infer.engine import LLM

    llm = LLM(folder, memory=memory)
    completions = llm.generate(list(PROMPTS), max_tokens=60, temperature=0.7, top_p=0.95, seed=1)
    samples = [{"prompt": prompt, "text": each.text} for prompt, each in zip(PROMPTS, completions, strict=True)]
    stats = llm.stats()
    llm.close()
    return samples, stats


def _page(folder: Path, expected: list[dict[str, str]]) -> dict[str, Any]:
    """Generate with a third of the weights in memory, and compare."""
    from moesaic.checkpoint.budget import DENSE
    from moesaic.checkpoint.folder import find_model
    from moesaic.checkpoint.inspect import inspect_checkpoint
    from moesaic.infer.plan import budget_for_weights
    from moesaic.memory.room import PAGES

    whole_bytes = inspect_checkpoint(folder)["total_bytes"]
    samples, stats = _samples(folder, budget_for_weights(find_model(folder), whole_bytes // 3))
    assert samples == expected, "paging changes no result"
    holdings = stats["holdings_bytes"]
    weight_bytes = holdings[DENSE] + holdings[PAGES]
    return {"whole_bytes": whole_bytes, "weight_bytes": weight_bytes, **stats}


def _print_paging(console: "Console", paging: dict[str, Any]) -> None:
    console.print(
        f"{format_bytes(paging['whole_bytes'])} of weights, {format_bytes(paging['weight_bytes'])} of them in memory: "
        f"{paging['slots']} of {paging['pages']} experts; {paging['hit_rate']:.0%} of those needed were there"
    )
    console.print("the same text, to the last character\n")


def _print_next(console: "Console", folder: Path) -> None:
    console.print("[bold]Next[/bold]", markup=True)
    console.print(f"  look      open {folder / 'report.html'} in a browser")
    console.print(f'  generate  moesaic generate {folder} "def main(" --temperature 0.7')
    console.print(f"  page      moesaic plan {folder} --memory 600MB")
    console.print(f"  exchange  transformers.AutoModelForCausalLM.from_pretrained('{folder / 'model'}')")
    console.print("  train     moesaic train recipes/tiny.toml --set data.source=YOUR_FOLDER --set train.out=runs/mine")
