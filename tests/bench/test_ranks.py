"""A mixture over processes as a benchmark: what each program computes, and what is made of the answers."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from moesaic.bench import ranks
from moesaic.bench.compare import check_equal
from moesaic.bench.ranks import PROGRAMS, bench_ranks
from moesaic.bench.shape import Shape
from moesaic.errors import ConfigError, MoesaicError
from moesaic.nn.moe.layer import MoELayer

PEERS = Path(__file__).parents[2] / ".venv-peers"
SMALL = Shape(64, 64, 32, 4, 2)


def _answer(name: str, folder: Path) -> dict[str, Any]:
    """Have a program compute a small layer on two ranks."""
    save_file(ranks._draw(SMALL, torch.float32, 2), folder / "tensors")
    request = {"tensors": str(folder / "tensors"), "chosen": SMALL.chosen, "warmup": 1, "steps": 3, "every": 5}
    program = PROGRAMS[name]
    python = sys.executable if name == "moesaic" else str(PEERS / "bin" / "python")
    return ranks._ask(python, program.worker, request | {"drop": program.drop}, 2, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moesaic", "deepspeed"])
def test_program_computes_the_mixture_of_one_process_when_asked(name: str, tmp_path: Path) -> None:
    if name == "deepspeed" and not (PEERS / "deepspeed.done").exists():
        pytest.skip("DeepSpeed has no environment here: make peers")
    answer = _answer(name, tmp_path)
    assert len(answer["seconds"]) == 3
    assert answer["peak_bytes"] > 0
    tensors = ranks._draw(SMALL, torch.float32, 2)
    layer = MoELayer(SMALL.config())
    layer.load_state_dict(
        {name: tensors[key] for name, key in (("router.weight", "router"), ("experts.gate_up", "gate_up"))}
        | {"experts.down": tensors["down"]}
    )
    expected = layer(tensors["hidden.0"].unsqueeze(0)).hidden_BSD[0, ::5]
    check_equal("result", torch.tensor(answer["result"]), expected)


def test_reason_is_told_when_ranks_end(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: no such thing' >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(MoesaicError, match="the ranks of ranks_deepspeed ended: ImportError: no such thing"):
        ranks._ask(str(python), "ranks_deepspeed", {}, 2, tmp_path)
    python.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(MoesaicError, match="ended: status 3"):
        ranks._ask(str(python), "ranks_deepspeed", {}, 2, tmp_path)


def test_benchmark_is_refused_when_it_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ranks 3 does not divide 16 experts"):
        bench_ranks(3, 3, tmp_path, lambda name: None)
    with pytest.raises(ConfigError, match="there is no DeepSpeed"):
        bench_ranks(2, 3, tmp_path, lambda name: None)


def _made_up(seconds: float, peak_mib: int, value: float = 1.0) -> dict[str, Any]:
    return {
        "version": "1",
        "seconds": [seconds, seconds, seconds],
        "peak_bytes": peak_mib * 2**20,
        "result": [[value, value]],
    }


def test_targets_are_held_against_each_peer_when_programs_have_taken_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deepspeed.done").touch()
    answers = {"ranks_moesaic": _made_up(0.1, 80), "ranks_deepspeed": _made_up(0.14, 100)}
    turns: list[str] = []

    def ask(python: str, worker: str, request: dict[str, Any], num_ranks: int, folder: Path) -> dict[str, Any]:
        turns.append(worker + (" drops" if request["drop"] else ""))
        return answers[worker]

    monkeypatch.setattr(ranks, "_ask", ask)
    monkeypatch.setattr(ranks, "SHAPES", (SMALL,))
    result = bench_ranks(2, 3, tmp_path, lambda name: None)
    assert turns == ["ranks_moesaic", "ranks_deepspeed", "ranks_deepspeed drops"] * 3 * 2
    assert [case["dtype"] for case in result["cases"]] == ["float32", "bfloat16"]
    case = result["cases"][0]
    assert case["tokens_per_s"] == {"moesaic": 640, "deepspeed": 457, "deepspeed_capacity": 457}
    assert [(row["found"], row["met"]) for row in case["targets"]] == [(1.4, True), (0.8, True)] * 2

    answers["ranks_deepspeed"]["result"] = [[1.5, 1.0]]
    with pytest.raises(MoesaicError, match="deepspeed differs by"):
        bench_ranks(2, 3, tmp_path, lambda name: None)
