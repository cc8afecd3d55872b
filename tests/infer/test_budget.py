"""A budget is kept: by what the process holds, and under a control group that would kill it."""

import json
import sys
from pathlib import Path

import pytest
import torch

from moesaic.bench.limited import run_limited
from moesaic.checkpoint.export import export_model
from moesaic.errors import UnsupportedError
from moesaic.hw.memory import CODE_BYTES
from moesaic.testing.tiny import tiny_model

MIB = 2**20
SHARES = [0.1, 0.3, 0.5, 0.8, 1.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with 192 MiB of experts, in pages of 3 MiB."""
    folder = tmp_path_factory.mktemp("budget") / "model"
    sizes = {"hidden_size": 512, "moe_intermediate_size": 1024, "num_experts": 16, "num_hidden_layers": 4}
    model = tiny_model(
        dtype=torch.bfloat16, vocab_size=500, max_position_embeddings=512, initializer_range=0.02, **sizes
    )
    export_model(model, folder)
    return folder


def _run(folder: Path, budget: int) -> dict[str, object]:
    """Generate in a process that is killed if it and the page cache of weights take more than its budget and code."""
    command = [sys.executable, "-m", "tests.infer.budgeted", folder, str(budget)]
    try:
        run = run_limited(command, budget + CODE_BYTES, cold=[folder], timeout_s=300)
    except UnsupportedError as refusal:
        pytest.skip(refusal.text)
    assert not run.was_killed
    assert run.returncode == 0, run.errors
    return json.loads(run.output)


@pytest.mark.slow
def test_peak_stays_under_the_budget_at_every_budget(folder: Path) -> None:
    whole = _run(folder, 8 * 2**30)
    stats = whole["stats"]
    assert isinstance(stats, dict)
    fixed = stats["held_bytes"] - stats["holdings_bytes"]["expert pages"]
    assert stats["slots"] == stats["pages"] == 64
    for share in SHARES:
        budget = int(fixed + 8 * MIB + share * stats["holdings_bytes"]["expert pages"])
        found = _run(folder, budget)
        assert isinstance(found["most"], int)
        assert found["most"] < budget
        assert found["tokens"] == whole["tokens"]
        paged = found["stats"]
        assert isinstance(paged, dict)
        assert paged["most_bytes"] <= budget
        assert paged["slots"] < 64 or share == 1.0
