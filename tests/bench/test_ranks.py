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
from moesaic.models.model import build_model
from moesaic.nn.moe.layer import MoELayer

PEERS = Path(__file__).parents[2] / ".venv-peers"
SMALL = Shape(64, 64, 32, 4, 2)


def _request(name: str, num_layers: int, folder: Path) -> dict[str, Any]:
    """Ask a program for something small."""
    draw_layer, draw_model = ranks._draw_layer, ranks._draw_model
    tensors = draw_model(SMALL, num_layers, torch.float32, 2) if num_layers else draw_layer(SMALL, torch.float32, 2)
    save_file(tensors, folder / "tensors")
    return {
        "program": str(Path(ranks.__file__).with_name(f"{PROGRAMS[name].file}.py")),
        "way": PROGRAMS[name].way,
        "tensors": str(folder / "tensors"),
        "chosen": SMALL.chosen,
        "layers": num_layers,
        "warmup": 1,
        "steps": 3,
        "every": 5,
    }


def _answer(name: str, num_layers: int, folder: Path) -> dict[str, Any]:
    """Have a program compute something small on two ranks."""
    if name != "moesaic" and not (PEERS / "deepspeed.done").exists():
        pytest.skip("DeepSpeed has no environment here: make peers")
    python = sys.executable if name == "moesaic" else str(PEERS / "bin" / "python")
    answer = ranks._ask(python, _request(name, num_layers, folder), 2, folder)
    assert len(answer["seconds"]) == 3
    assert answer["peak_bytes"] > 0
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moesaic", "deepspeed", "deepspeed_autoep"])
def test_program_computes_the_mixture_of_one_process_when_asked(name: str, tmp_path: Path) -> None:
    answer = _answer(name, 0, tmp_path)
    tensors = ranks._draw_layer(SMALL, torch.float32, 2)
    layer = MoELayer(SMALL.config())
    layer.load_state_dict(
        {name: tensors[key] for name, key in (("router.weight", "router"), ("experts.gate_up", "gate_up"))}
        | {"experts.down": tensors["down"]}
    )
    expected = layer(tensors["hidden.0"].unsqueeze(0)).hidden_BSD[0, ::5]
    check_equal("result", torch.tensor(answer["result"]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moesaic", "deepspeed", "deepspeed_autoep"])
def test_program_computes_the_loss_of_one_process_when_asked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_LENGTH", 16)
    answer = _answer(name, 2, tmp_path)
    tensors = ranks._draw_model(SMALL, 2, torch.float32, 2)
    model = build_model(SMALL.config(2, tensors["head.weight"].shape[0]))
    model.load_state_dict({name: each for name, each in tensors.items() if each.is_floating_point()})
    loss, _ = model.score(tensors["ids.0"], tensors["labels.0"])
    # A rank's share of the mean over the tokens of both.
    check_equal("loss", torch.tensor(answer["result"]), (loss / SMALL.tokens).reshape(1, 1))


def test_reason_is_told_when_ranks_end(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: no such thing' >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(MoesaicError, match="the ranks of ranks_deepspeed ended: ImportError: no such thing"):
        ranks._ask(str(python), {"program": "there/ranks_deepspeed.py"}, 2, tmp_path)
    python.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(MoesaicError, match="ended: status 3"):
        ranks._ask(str(python), {"program": "there/ranks_deepspeed.py"}, 2, tmp_path)


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
    answers = {"": _made_up(0.1, 80), "dropless": _made_up(0.14, 100)}
    answers |= {"capacity": _made_up(0.13, 90, 7.0), "auto": _made_up(0.14, 100)}
    turns: list[str] = []

    def ask(python: str, request: dict[str, Any], num_ranks: int, folder: Path) -> dict[str, Any]:
        turns.append(request["way"])
        return answers[request["way"]]

    monkeypatch.setattr(ranks, "_ask", ask)
    monkeypatch.setattr(ranks, "SHAPES", (SMALL,))
    monkeypatch.setattr(ranks, "MODEL", SMALL)
    monkeypatch.setattr(ranks, "_LENGTH", 16)
    result = bench_ranks(2, 3, tmp_path, lambda name: None)
    there = ["", "dropless", "capacity", "auto"]
    assert turns == (there + there[::-1]) * 4
    cases = [(case["dtype"], case["layers"]) for case in result["cases"]]
    assert cases == [("float32", 0), ("float32", 4), ("bfloat16", 0), ("bfloat16", 4)]
    case = result["cases"][0]
    assert case["tokens_per_s"] == {
        "moesaic": 640,
        "deepspeed": 457,
        "deepspeed_capacity": 492,
        "deepspeed_autoep": 457,
    }
    met, missed = [(1.4, True), (0.8, True)], [(1.3, False), (0.889, False)]
    assert [(row["found"], row["met"]) for row in case["targets"]] == met + missed + met

    answers["dropless"]["result"] = [[1.5, 1.0]]
    with pytest.raises(MoesaicError, match="deepspeed differs by"):
        bench_ranks(2, 3, tmp_path, lambda name: None)
