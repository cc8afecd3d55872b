"""Saving and loading as a benchmark: what the ranks do, and what is made of their answer."""

from pathlib import Path
from typing import Any

import pytest

from moesaic.bench import checkpoint
from moesaic.bench.checkpoint import MODEL, TARGETS, bench_checkpoint
from moesaic.errors import ConfigError, MoesaicError

SMALL = {**MODEL, "vocab_size": 64, "hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2}
NAMES = {"torch_save", "save", "stall", "stall_at_rest", "step", "step_beside"}
NAMES |= {f"{cache}_{name}" for cache in ("cold", "warm") for name in ("torch_load", "load", "load_alone")}


@pytest.mark.slow
def test_everything_is_measured_and_held_against_the_targets_when_a_small_model_is_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkpoint, "MODEL", SMALL)
    monkeypatch.setattr(checkpoint, "_TOKENS", 32)
    result = bench_checkpoint(2, 3, tmp_path)
    (case,) = result["cases"]
    assert case["times"].keys() == NAMES
    assert 0 < case["bytes"] < case["report"]["bytes"], "headers come on top"
    assert case["report"]["ranks"] == 2
    assert not list(tmp_path.iterdir())


def _answer(**seconds: float) -> dict[str, Any]:
    values = {name: [1.0, 1.0, 1.0] for name in NAMES} | {name: [each] * 3 for name, each in seconds.items()}
    return {"bytes": 10**9, "seconds": values, "reports": [{"step": 1}]}


def test_targets_are_ratios_of_medians_when_the_ranks_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_ask", lambda *_: _answer(torch_save=3.0, stall=0.1, cold_load=2.0, warm_load=0.5))
    (case,) = bench_checkpoint(2, 3)["cases"]
    found = {row["figure"]: (row["found"], row["met"]) for row in case["targets"]}
    assert found == {
        "torch_save / stall": (30.0, True),
        "cold_torch_load / cold_load": (0.5, False),
        "warm_torch_load / warm_load": (2.0, True),
    }
    assert len(TARGETS) == len(found)


def test_reason_is_told_when_the_ranks_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    monkeypatch.setattr(checkpoint.sys, "executable", str(python))
    for text, told in (("echo 'OSError: disk is full' >&2; ", "OSError: disk is full"), ("", "status 3")):
        python.write_text(f"#!/bin/sh\n{text}exit 3\n")
        python.chmod(0o755)
        with pytest.raises(MoesaicError, match=f"the ranks ended: {told}"):
            bench_checkpoint(2, 3)


def test_benchmark_is_refused_when_ranks_do_not_divide_the_experts() -> None:
    with pytest.raises(ConfigError, match="--ranks 3 does not divide 16 experts"):
        bench_checkpoint(3, 3)
