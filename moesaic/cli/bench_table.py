"""The tables of `moesaic bench`, on standard error."""

from typing import Any

from rich.table import Table

from moesaic.cli.output import error_console


def print_train(result: dict[str, Any]) -> None:
    """Print training steps beside transformers'."""
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


def print_ops(result: dict[str, Any]) -> None:
    """Print the mixture beside its peers, and targets."""
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


def print_infer(result: dict[str, Any]) -> None:
    """Print generation beside its peers, and targets."""
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


def print_ranks(result: dict[str, Any]) -> None:
    """Print what processes reach together beside DeepSpeed-MoE."""
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


def print_checkpoint(result: dict[str, Any]) -> None:
    """Print times of saving and loading."""
    table = Table("what", "ms", "+-", title=f"1 GB of state, {result['machine']['ranks']} ranks")
    for name, times in result["cases"][0]["times"].items():
        table.add_row(name, f"{times['median_ms']:.1f}", f"{times['iqr_ms']:.1f}")
    _print_with_targets(table, {case["name"]: case["targets"] for case in result["cases"]})


def print_scale(result: dict[str, Any]) -> None:
    """Print how a step grows, here and on clusters."""
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


def print_comm(result: dict[str, Any]) -> None:
    """Print what messages and chunks cost."""
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


def _print_with_targets(table: Table, all_targets: dict[str, list[dict[str, Any]]]) -> None:
    """Print a table, and below it the targets of each case."""
    targets = Table("case", "figure", "limit", "found", "met", title="targets")
    for name, rows in all_targets.items():
        for row in rows:
            found = "not measured" if row["found"] is None else f"{row['found']:.3g}"
            met = "yes" if row["met"] else "no"
            targets.add_row(name, row["figure"], f"at {row['at']} {row['limit']:g}", found, met)
    # Numbers stay whole where words can wrap.
    for each, words in ((table, 0), (targets, 1)):
        for index, column in enumerate(each.columns):
            column.no_wrap = index != words
        error_console().print(each)
