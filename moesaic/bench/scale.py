"""`moesaic bench scale`: how a step grows with the ranks, measured here, and predicted for clusters.

Here, training runs of the same recipe with more and more processes, each with the same number of tokens and fewer
experts, are measured; the costs are fitted to all but the last, which is predicted. Of published clusters, the first
three sizes are fitted and the others predicted, those that are published and larger ones.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moesaic.bench.growth import Growth, fit_growth
from moesaic.bench.measure import describe_machine
from moesaic.bench.published import PUBLISHED, RANKS_PER_NODE, Published
from moesaic.errors import MoesaicError
from moesaic.telemetry.metrics import read_metrics

RANKS = (1, 2, 4, 8)
LARGEST = 1024
# Fitted; the others are predicted.
FITTED = (8, 16, 32)
_TIMEOUT_S = 600
_WARMUP = 3
_TOKENS_A_RANK = 512
_MODEL = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "moe_intermediate_size": 512,
    "num_experts": 16,
    "num_experts_per_tok": 2,
}


def bench_scale(ranks: Sequence[int], steps: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure here and predict elsewhere; return the result as plain data.

    Args:
        ranks: numbers of processes, ascending.
        steps: of each run that are timed.
        report: is told what is being measured.

    Raises:
        MoesaicError: a run failed.
    """
    measured: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("\n".join(f"{number} and {number * number}" for number in range(60_000)))
        for num_ranks in ranks:
            report(f"{num_ranks} ranks")
            measured[num_ranks] = _measure_run(Path(folder), text, num_ranks, steps)
    return {
        "benchmark": "scale",
        "machine": describe_machine(),
        "steps": steps,
        "here": _tell_here(measured),
        "published": [_tell_published(each) for each in PUBLISHED],
    }


def _measure_run(folder: Path, text: Path, num_ranks: int, steps: int) -> float:
    """Return the median seconds of a step."""
    out = folder / f"run-{num_ranks}"
    settings = {
        "data.source": text,
        "data.sequence_length": 256,
        "data.cache": folder / "cache",
        "train.out": out,
        "train.batch_size": num_ranks * _TOKENS_A_RANK // 256,
        "train.steps": _WARMUP + steps,
        "train.threads": 1,
        "train.evaluate_every": 10**6,
        "train.evaluate_batches": 1,
        "checkpoint.every": 10**6,
        **{f"model.{key}": value for key, value in _MODEL.items()},
    }
    recipe = folder / "recipe.toml"
    recipe.write_text(_to_toml(settings))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *(launcher if num_ranks > 1 else []), "-m", "moesaic", "train", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if "rror" in line] or [f"status {done.returncode}"]
        raise MoesaicError(f"the run of {num_ranks} ranks ended: {told[0].strip()}", "run it alone: moesaic train")
    rows = read_metrics(out / "metrics.jsonl")[_WARMUP:]
    return statistics.median(num_ranks * _TOKENS_A_RANK / row["tokens_per_s"] for row in rows)


def _to_toml(settings: dict[str, Any]) -> str:
    lines = []
    for key, value in settings.items():
        lines.append(f"{key} = {value}" if isinstance(value, int) else f'{key} = "{value}"')
    return "\n".join(lines) + "\n"


def _tell_here(measured: dict[int, float]) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    fitted = dict(list(measured.items())[:-1]) if len(measured) > 2 else measured
    growth = fit_growth(fitted, at_once=cores)
    rows = [
        {
            "ranks": num_ranks,
            "step_s": round(seconds, 5),
            "predicted_s": round(growth.predict(num_ranks), 5),
            "is": "fitted" if num_ranks in fitted else "predicted",
        }
        for num_ranks, seconds in measured.items()
    ]
    return {"cores": cores, "tokens_a_rank": _TOKENS_A_RANK, "model": _MODEL, "costs": _costs(growth), "rows": rows}


def _tell_published(known: Published) -> dict[str, Any]:
    # Seconds for 1,024 tokens a GPU: how many a step has was not published, and only scales the costs.
    seconds = {num: 1024 * num / rate for num, rate in known.tokens_per_s.items()}
    growth = fit_growth({num: seconds[num] for num in FITTED}, RANKS_PER_NODE)
    sizes, rows = sorted(seconds), []
    while sizes[-1] < LARGEST:
        sizes.append(2 * sizes[-1])
    for num in sizes:
        published, rate = known.tokens_per_s.get(num), 1024 * num / growth.predict(num)
        row = {
            "gpus": num,
            "published_tokens_per_s": published,
            "predicted_tokens_per_s": round(rate),
            "is": "fitted" if num in FITTED else "predicted",
            "apart": None if published is None else round(rate / published - 1, 4),
        }
        if known.is_flat:
            row["predicted_in_two_hops"] = round(1024 * num / growth.predict(num, two_hops=True))
        rows.append(row)
    return {"system": known.system, "costs": _costs(growth), "rows": rows}


def _costs(growth: Growth) -> dict[str, float]:
    return {
        "compute_s": growth.compute_s,
        "crossing_s": growth.crossing_s,
        "message_s": growth.message_s,
    }
