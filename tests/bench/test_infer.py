"""Generation as a benchmark: our worker, the replayed routing, and what is made of the answers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.bench import infer
from moesaic.bench.generation import Programs, rates_of
from moesaic.bench.infer import Work, bench_infer
from moesaic.bench.replayed import replay_routing
from moesaic.bench.worker import Answer, ask_worker
from moesaic.checkpoint.export import export_model
from moesaic.errors import DataError, MoesaicError, UnsupportedError
from moesaic.testing.tiny import tiny_model

LINES = [[[(token + layer + choice * 2) % 5 for choice in range(2)] for layer in range(2)] for token in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two mixtures with two of five experts a token."""
    folder = tmp_path_factory.mktemp("infer") / "model"
    export_model(tiny_model(), folder)
    return folder


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A recorded routing of such a model."""
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps({"tok": n, "layers": layers}) + "\n" for n, layers in enumerate(LINES)))
    return path


def test_tokens_take_the_recorded_experts_when_a_routing_is_replayed(trace: Path) -> None:
    model, seen = tiny_model(), []
    dispatchers = {layer: moe.dispatcher for layer, moe in model.moe_layers().items()}
    for moe in model.moe_layers().values():
        mix = moe.dispatcher.mix
        moe.dispatcher.mix = lambda hidden, routing, experts, mix=mix: (  # type: ignore[method-assign, misc]
            seen.append(routing.expert_ids_N.view(-1, 2).tolist()) or mix(hidden, routing, experts)
        )
    ids = torch.tensor([[1, 2, 3]])
    before = model(ids)
    seen.clear()
    with replay_routing(model, trace):
        model(ids)
        model(ids)
    assert seen == [
        [LINES[token][layer] for token in tokens] for tokens in ((0, 1, 2), (3, 4, 5)) for layer in range(2)
    ]
    assert torch.equal(model(ids), before), "afterwards its own"
    assert dispatchers.keys() == {0, 1}


def test_trace_is_refused_when_it_is_of_another_model(trace: Path) -> None:
    with (
        pytest.raises(DataError, match="is no trace of 2 layers with 1 of 5 experts"),
        replay_routing(tiny_model(num_experts_per_tok=1, router="switch"), trace),
    ):
        pass


def test_worker_of_ours_answers_as_the_others_and_with_its_counts(folder: Path, trace: Path) -> None:
    request = {
        "model": str(folder),
        "prompts": [[3]],
        "next": [[5] * 9],
        "new_tokens": 9,
        "threads": 1,
        "rounds": 1,
        "logits": None,
        "memory": None,
        "resident": None,
        "policy": "decayed",
        "trace": str(trace),
    }
    values = ask_worker(Path(sys.executable), "moesaic", request).values
    assert len(values["prefill_s"]) == 1
    assert len(values["steps_s"][0]) == 8
    last = values["stats"][-1]
    assert (last["hits"], last["misses"]) == (9 * 2 * 2, 0)
    assert last["slots"] == last["pages"] == 10
    assert values["sizes"]["num_experts"] == 5
    assert min(*values["disk_gb_per_s"], values["memory_gb_per_s"]) > 0


def _answer(**changes: Any) -> Answer:
    stats = {
        "hits": 0,
        "misses": 0,
        "slots": 4,
        "stall_seconds": 0.0,
        "bytes_read": 0,
        "guesses_right": 0,
        "guesses_wrong": 0,
    }
    values = {
        "prefill_s": [2.0],
        "steps_s": [[0.5, 1.5]],
        "tokens": [[1, 2, 3]],
        "stats": [stats, stats, stats | {"hits": 6, "misses": 2, "bytes_read": 4 * 10**9}],
        "sizes": {"memory_bytes_per_token": 3 * 10**9, "stored_page_bytes": 10**9},
        "disk_gb_per_s": [1.0, 2.0],
        "memory_gb_per_s": 10.0,
        **changes,
    }
    return Answer(values, None)


def test_limit_is_the_larger_of_memory_and_disk_when_worked_by_hand() -> None:
    report = infer._against_limits(_answer())
    assert (report["tokens_per_s"], report["hit_rate"]) == (1.0, 0.75)
    assert report["limit_step_s"] == 0.5, "2 misses of 1 GB in 2 steps, at 2 GB/s"
    assert report["share_of_limit"] == 0.5
    assert infer._against_limits(_answer(memory_gb_per_s=3.0))["limit_step_s"] == 1.0
    assert rates_of(_answer())["step_s"] == 1.0


def test_peer_that_fails_is_told_with_the_reason_when_programs_take_turns(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(self: Programs, name: str, *_: object, **__: object) -> Answer:
        if name == "llama":
            raise MoesaicError("llama.cpp is out", "none")
        return _answer() if name == "moesaic" else _answer(steps_s=[[8.0, 12.0]])

    monkeypatch.setattr(Programs, "ask", ask)
    work = Work(Programs(folder, tmp_path / "gguf", tmp_path, tmp_path, 61, 1), None, 1, 4)
    result = bench_infer(work, ["decode", "traced"], lambda _: None)
    (case,) = result["cases"]
    assert case["llama"] == {"refused": "llama.cpp is out"}
    assert [(row["figure"], row["found"], row["met"]) for row in case["targets"]] == [
        ("moesaic / llama", None, False),
        ("moesaic / transformers", 10.0, True),
    ]


def test_llama_is_refused_when_it_has_no_weights(folder: Path, tmp_path: Path) -> None:
    programs = Programs(folder, tmp_path / "gguf", tmp_path, tmp_path, 61, 1)
    with pytest.raises(UnsupportedError, match=r"for llama\.cpp"):
        programs.ask("llama", 1, 1)
