"""`moesaic plan`: what fits where, before anything is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from moesaic.cli.output import error_console, print_json
from moesaic.cli.train import load_run
from moesaic.errors import ConfigError
from moesaic.units import format_bytes, format_count, format_seconds, parse_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BAR_WIDTH = 30
_LEGEND = """\
hits: of a token's experts, those that have a slot when they are asked for; if routing has no preferences,
and if it is as uneven as OLMoE-1B-7B's was in a recorded text
tokens/s: if reading and computing take turns, and if they overlap; of one sequence, nothing else counted
first, later: to read a prompt when no expert is there yet, and when all slots are full"""
_DENSE_LEGEND = "tokens/s of one sequence, nothing but reading the weights counted"
_TIERS = {
    "device": "state of the dense core, weights and gradients of one layer's experts",
    "memory": "state of the dense core and of the experts that a pass touches",
    "disk": "weights and moments of all experts",
}
_RECIPE_LEGEND = "state: weights, gradients and moments; activations come on top"


def plan(
    model: str = typer.Argument(metavar="MODEL|RECIPE", help="A model as for `moesaic generate`, or a recipe's .toml."),
    memory: str | None = typer.Option(
        None,
        help="All that the process may hold, such as 4GiB; default: as `moesaic generate`; for a recipe, what is free.",
    ),
    prompt_tokens: int | None = typer.Option(
        None, min=1, help="Tokens of the prompt that is answered; default: 512, or as many as the model reads."
    ),
    dtype: str | None = typer.Option(None, help="bfloat16, float16 or float32; default: as stored."),
    memory_rate: str | None = typer.Option(None, help="Bytes a second, such as 25GB, instead of measuring."),
    disk_rate: str | None = typer.Option(None, help="Bytes a second, such as 1.5GB, instead of measuring."),
    arithmetic_rate: float | None = typer.Option(None, min=1e-3, help="GFLOP/s, instead of measuring."),
    ranks: int | None = typer.Option(
        None, min=1, max=2**20, help="Of a recipe: show what each of so many processes keeps; none is started."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of tables."),
) -> None:
    """Show what a memory budget has room for, and how fast that can be: `moesaic plan MODEL --memory 4GiB`."""
    budget = None if memory is None else parse_bytes(memory)
    stated = {
        name: float(parse_bytes(rate, f"{name}-rate"))
        for name, rate in (("memory", memory_rate), ("disk", disk_rate))
        if rate is not None
    } | ({} if arithmetic_rate is None else {"arithmetic": arithmetic_rate * 1e9})
    if model.endswith(".toml"):
        if stated or prompt_tokens is not None or dtype is not None:
            raise ConfigError(
                f"'{model}' is a recipe, planned for memory alone", "leave out --prompt-tokens, --dtype and rates"
            )
        facts = _plan_recipe(Path(model), budget) if ranks is None else _lay_out_recipe(Path(model), ranks)
    else:
        if ranks is not None:
            raise ConfigError(f"'{model}' is no recipe: --ranks is about training", "give a recipe's .toml")
        facts = _plan_model(model, dtype, budget, prompt_tokens, stated)
    if as_json:
        print_json(facts)
        return
    console = error_console()
    console.stderr = False
    if not model.endswith(".toml"):
        _print_model(facts, console)
    elif ranks is None:
        _print_recipe(facts, console)
    else:
        _print_layout(facts, console)


def _plan_recipe(path: Path, budget: int | None) -> dict[str, Any]:
    config = load_run(path, [])
    from moesaic.train.plan import plan_training

    return {"recipe": str(path), **plan_training(config, budget)}


def _lay_out_recipe(path: Path, num_ranks: int) -> dict[str, Any]:
    config = load_run(path, [])
    from moesaic.train.plan import plan_layout

    return {"recipe": str(path), **plan_layout(config, num_ranks)}


def _plan_model(
    name: str, dtype: str | None, budget: int | None, prompt_tokens: int | None, stated: dict[str, float]
) -> dict[str, Any]:
    from moesaic.infer.plan import plan_inference

    return plan_inference(name, dtype, budget, prompt_tokens, stated)


def _print_model(facts: dict[str, Any], console: "Console") -> None:
    chosen = facts["plan"]
    given = "" if facts["budget_is_given"] else " (no --memory given)"
    console.print(
        f"{facts['model']} ({facts['family']}, {facts['dtype']}) within {format_bytes(chosen['budget'])}{given}"
    )
    console.print()
    console.print(_holdings_table(facts, "█" if console.encoding.startswith("utf") else "#"))
    console.print()
    read = f"a token reads {format_bytes(facts['memory_bytes_per_token'])} of memory"
    if facts["num_pages"]:
        console.print(
            f"{chosen['num_in_use']} of {facts['num_pages']} experts have a slot: {chosen['num_sections']} of "
            f"{facts['num_layers']} layers at once, or {chosen['num_in_use'] / facts['num_layers']:.3g} experts of "
            f"{facts['num_experts']} in each"
        )
        read += f" and, if no expert had a slot, {format_bytes(facts['disk_bytes_per_token'])} of files"
    console.print(read)
    console.print(
        f"smallest budget that works {format_bytes(facts['smallest_budget_bytes'])}"
        + (f", for all experts {format_bytes(facts['whole_budget_bytes'])}" if facts["num_pages"] else "")
    )
    told = {name: _tell_rate(name, rate) for name, rate in facts["rates"].items()}
    for how, names in (("measured just now", facts["rates_measured"]), ("stated", facts["rates_stated"])):
        if names:
            console.print(f"{how}: {', '.join(told[name] for name in names)}")
    console.print()
    console.print(_budget_table(facts))
    console.print()
    console.print(_LEGEND if facts["num_pages"] else _DENSE_LEGEND, style="dim")


def _holdings_table(facts: dict[str, Any], block: str) -> "Table":
    chosen = facts["plan"]
    table = _table("purpose", "bytes", "share")
    table.show_header = False
    table.columns[1].justify = "right"
    free = chosen["budget"] - sum(chosen["holdings"].values())
    for purpose, num_bytes in {**chosen["holdings"], "free": free}.items():
        if num_bytes:
            bar = block * round(_BAR_WIDTH * num_bytes / chosen["budget"])
            table.add_row(purpose, format_bytes(num_bytes), bar)
    return table


def _budget_table(facts: dict[str, Any]) -> "Table":
    chosen = facts["plan"]["budget"]

    def speed(routing: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: _range(*row[routing]["tokens_per_s"])

    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("budget", lambda row: ("> " if row["budget"] == chosen else "") + format_bytes(row["budget"]))
    ]
    if facts["num_pages"]:
        columns += [
            ("slots", lambda row: str(row["num_in_use"])),
            ("hits,\neven", lambda row: f"{row['even']['hit_rate']:.0%}"),
            ("tokens/s", speed("even")),
            ("hits,\nuneven", lambda row: f"{row['traced']['hit_rate']:.0%}"),
            ("tokens/s", speed("traced")),
            (f"{facts['prompt_tokens']} tokens,\nfirst", lambda row: _seconds(row["first_prompt_seconds"])),
            ("later", lambda row: _seconds(row["later_prompt_seconds"])),
        ]
    else:
        columns += [
            ("tokens/s", speed("even")),
            (f"{facts['prompt_tokens']} tokens", lambda row: _seconds(row["first_prompt_seconds"])),
        ]
    table = _table(*(name for name, _ in columns))
    for column in table.columns:
        column.justify = "right"
    rows = {row["budget"]: row for row in (*facts["budgets"], facts["plan"])}
    for _, row in sorted(rows.items()):
        table.add_row(*(tell(row) for _, tell in columns))
    return table


def _print_recipe(facts: dict[str, Any], console: "Console") -> None:
    count = format_count
    console.print(
        f"{facts['recipe']}: {count(facts['dense_parameters'])} parameters in the dense core, "
        f"{count(facts['expert_parameters'])} in the experts of {facts['moe_layers']} layers; a pass touches "
        f"{facts['touched_share']:.0%} of them"
    )
    console.print()
    table = _table("tier", "takes", "a machine has", "for")
    table.columns[-1].no_wrap = False
    for tier, sizes in facts["tiers"].items():
        table.add_row(tier, format_bytes(sizes["needed_bytes"]), format_bytes(sizes["machine_bytes"]), _TIERS[tier])
    console.print(table)
    console.print()
    console.print(f"machines that hold it: {facts['machines']}")
    console.print(f"most expert parameters beside this dense core on one: {count(facts['largest_expert_parameters'])}")
    console.print(f"all in memory, as `moesaic train` has it: {format_bytes(facts['whole_bytes'])}")
    console.print()
    console.print(_RECIPE_LEGEND, style="dim")


def _print_layout(facts: dict[str, Any], console: "Console") -> None:
    degrees = ", ".join(f"{name} {each}" for name, each in facts["degrees"].items() if not isinstance(each, bool))
    console.print(f"{facts['recipe']} on {facts['ranks']:,} ranks: {degrees}")
    console.print()
    table = _table("parameter", "layers", "a rank keeps", "ranks with it", "its state")
    for column in (table.columns[1], *table.columns[3:]):
        column.justify = "right"
    for group in facts["parameters"]:
        name = group["name"].removeprefix("decoder.").removesuffix(".weight")
        layers = str(group["count"]) if "*" in name else ""
        copies, state = f"{group['copies']:,}", format_bytes(group["state_bytes"])
        table.add_row(name.removeprefix("layers.*."), layers, group["placement"], copies, state)
    console.print(table)
    console.print()
    console.print(
        f"state of a rank: {format_bytes(facts['state_bytes'])}; of all: {format_bytes(facts['whole_bytes'])}"
    )
    console.print()
    console.print(_RECIPE_LEGEND, style="dim")


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in table.columns:
        column.no_wrap = True
    return table


def _tell_rate(name: str, rate: float | None) -> str:
    if rate is None:
        return name
    return f"{name} {rate / 1e9:,.0f} GFLOP/s" if name == "arithmetic" else f"{name} {format_bytes(rate)}/s"


def _range(low: float, high: float) -> str:
    texts = [f"{each:.2g}" if each < 99.5 else format_count(each) for each in (low, high)]
    return "-".join(dict.fromkeys(texts))


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if 1 <= seconds < 9.95 else format_seconds(seconds)
