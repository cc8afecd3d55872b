"""A run that was never trained: rows as the trainer writes them, the same for every call."""

import math
import random
from typing import Any

import pytest

Rows = list[dict[str, Any]]


def _fake_shares(random_source: random.Random, num_experts: int) -> list[float]:
    weights = [random_source.random() + 0.5 for _ in range(num_experts)]
    return [weight / sum(weights) for weight in weights]


def _fake_row(step: int, steps: int, random_source: random.Random) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 3 + 6 * math.exp(-5 * step / steps) + random_source.gauss(0, 0.05),
        "tokens_per_s": 20_000 + random_source.gauss(0, 300),
        "learning_rate": 1e-3 * (1 - step / (steps + 1)),
        "grad_norm": 0.5 + random_source.random(),
        "seconds": 0.2 * step,
        "tokens": 4096 * step,
    }


@pytest.fixture
def fake_rows():
    """A function that returns the rows of a run; num_layers 0 makes a dense one."""

    def build(steps: int = 40, num_layers: int = 2, num_experts: int = 8, held_out_every: int = 10) -> Rows:
        source = random.Random(0)
        rows = [_fake_row(step, steps, source) for step in range(1, steps + 1)]
        for row in rows:
            if held_out_every and row["step"] % held_out_every == 0:
                row["held_out_loss"] = row["loss"] + 0.1
            if num_layers:
                row |= {"balance_loss": 1.1, "z_loss": 0.5, "max_violation": 0.4, "load_entropy": 0.98}
                row |= {"dead_experts": 0, "dropped_share": 0.0}
            if num_layers and row["step"] % 4 == 1:
                layers = {str(layer): _fake_shares(source, num_experts) for layer in range(num_layers)}
                row["expert_load"] = {"layers": layers}
        return rows

    return build


@pytest.fixture
def fake_config():
    """A resolved recipe as plain data."""
    return {
        "model": {"hidden_size": 256, "num_experts": 8, "head_dim": None, "tie_word_embeddings": False},
        "optim": {"kind": "adamw", "betas": [0.9, 0.95], "clip_norm": 1.0},
    }
