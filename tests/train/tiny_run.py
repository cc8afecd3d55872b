"""Recipes whose steps take milliseconds, on a made-up language, and what is compared of two runs."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.config.load import check_section
from moesaic.config.run import RunConfig
from moesaic.models.table import expand_model
from moesaic.telemetry.metrics import read_metrics

Changes = Mapping[str, Any]

_MODEL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
# Measured by a clock, so never the same twice.
_TIMES = ("seconds", "tokens_per_s")


def write_text(path: Path, num_lines: int = 900) -> Path:
    """Write some 50 kB of words in a random order, the same each time."""
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghij", k=source.randint(2, 6))) for _ in range(150)]
    path.write_text("\n".join(" ".join(source.choices(words, k=12)) for _ in range(num_lines)))
    return path


def tiny_tree(text: Path, out: Path, changes: Changes | None = None) -> dict[str, dict[str, Any]]:
    """Return a recipe as plain data; `changes` are given by dotted key, None removes one."""
    tree: dict[str, dict[str, Any]] = {
        "model": dict(_MODEL),
        "data": {"source": str(text), "sequence_length": 32, "held_out": 0.05, "cache": str(text.parent / "cache")},
        "optim": {"learning_rate": 0.01},
        "train": {
            "out": str(out),
            "steps": 8,
            "batch_size": 4,
            "precision": "float32",
            "threads": 1,
            "evaluate_every": 4,
            "evaluate_batches": 2,
        },
        "checkpoint": {"every": 100},
    }
    for key, value in (changes or {}).items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
        if value is None:
            del tree[section][name]
    return tree


def tiny_run(text: Path, out: Path, changes: Changes | None = None) -> RunConfig:
    """Return a checked recipe; see `tiny_tree`."""
    tree = tiny_tree(text, out, changes)
    return check_section(RunConfig, {**tree, "model": expand_model(tree["model"])}, "tiny_run")


def read_course(folder: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run without what a clock measured: equal courses are equal to the last digit."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]
