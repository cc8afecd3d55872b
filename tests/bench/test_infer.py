"""Generation as a benchmark: our worker, the replayed routing, and what is made of the answers."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.bench import generation, infer
from moesaic.bench.generation import Programs, rates_of
from moesaic.bench.infer import Work, bench_infer
from moesaic.bench.replayed import draw_evenly, replay_routing
from moesaic.bench.worker import Answer, ask_worker
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.stored import open_model
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
        "disk_gb_per_s": [1.5, 2.5],
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


def test_report_is_json_when_nothing_follows_the_prompt() -> None:
    report = infer._against_limits(_answer(steps_s=[[]]))
    assert (report["tokens_per_s"], report["share_of_limit"], report["prefill_s"]) == (None, None, 2.0)
    json.dumps(report, allow_nan=False)


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
    case, even = result["cases"]
    assert case["llama"] == {"refused": "llama.cpp is out"}
    for each in (case, even):
        assert [(row["figure"], row["found"], row["met"]) for row in each["targets"]] == [
            ("moesaic / llama", None, False),
            ("moesaic / transformers", 10.0, True),
        ]


def test_experts_are_drawn_evenly_and_each_time_the_same() -> None:
    drawn = draw_evenly(tiny_model())
    assert drawn == draw_evenly(tiny_model())
    counts = Counter((layer, expert) for line in drawn for layer, experts in enumerate(line) for expert in experts)
    assert counts.total() == len(drawn) * 2 * 2
    assert max(counts.values()) < 1.2 * min(counts.values())
    assert len(counts) == 2 * 5


def test_prefill_is_held_against_the_bytes_that_each_prompt_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = [{"bytes_read": count * 10**9} for count in (1, 9, 9, 13, 13, 16, 16)]
    rates = [1.5, 2.5, 1.5, 2.5]

    def ask(self: Programs, *_: object, limit_bytes: int | None = None, **__: object) -> Answer:
        seconds = [8.0, 4.0, 3.0] if limit_bytes else [2.0, 1.5, 1.0]
        return _answer(prefill_s=seconds, stats=stats, disk_gb_per_s=rates)

    monkeypatch.setattr(Programs, "ask", ask)
    work = Work(Programs(folder, tmp_path, tmp_path, tmp_path, 61, 1), None, 1, 4)
    (case,) = bench_infer(work, ["prefill"], lambda _: None)["cases"]
    assert case["compute_s"] == 1.5
    assert case["gb_read"] == [8.0, 4.0, 3.0]
    assert case["first_over_limit"] == 2.0, "8 GB at 2 GB/s"
    assert case["over_limit"] == 2.0, "4 s for 4 GB at 2 GB/s, 3 s for what computing takes"
    assert not case["targets"][0]["met"]


def test_batch_is_held_against_what_its_misses_leave(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(self: Programs, *_: object, sequences: int, **__: object) -> Answer:
        before = _answer().values["stats"][0]
        stats = [before, before, before | {"hits": 6, "misses": 2 * sequences}]
        return _answer(tokens=[[1]] * sequences, stats=stats, steps_s=[[float(sequences) / 2] * 2])

    monkeypatch.setattr(Programs, "ask", ask)
    work = Work(Programs(folder, tmp_path, tmp_path, tmp_path, 61, 1), None, 1, 4)
    cases = bench_infer(work, ["batches"], lambda _: None)["cases"]
    assert [case["over_one"] for case in cases] == [1.0] * 6
    assert [case["bound"] for case in cases] == [1.0] * 6
    assert [case["targets"][0]["met"] for case in cases if "targets" in case] == [False]


def test_low_bits_are_written_once_and_held_against_exact_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "model"
    export_model(tiny_model(dtype=torch.bfloat16), wide)
    asked: list[str] = []

    def answer(python: Path, name: str, request: dict[str, Any], *_: object, **__: object) -> Answer:
        asked.append(Path(request["model"]).name)
        return _answer(steps_s=[[{"model": 1.0, "model-int8": 0.5, "model-int4": 0.25}[asked[-1]]] * 2])

    monkeypatch.setattr(generation, "ask_worker", answer)
    work = Work(Programs(wide, tmp_path, tmp_path, tmp_path, 61, 1), None, 2, 4)
    eight, four = bench_infer(work, ["low-bits"], lambda _: None)["cases"]
    assert asked == ["model", "model-int8", "model-int4"] * 2
    assert (eight["over_exact"], four["over_exact"]) == (2.0, 4.0)
    assert [row["met"] for row in eight["targets"]] == [True]
    assert open_model(tmp_path / "model-int4").bits == 4


def test_llama_is_refused_when_it_has_no_weights(folder: Path, tmp_path: Path) -> None:
    programs = Programs(folder, tmp_path / "gguf", tmp_path, tmp_path, 61, 1)
    with pytest.raises(UnsupportedError, match=r"for llama\.cpp"):
        programs.ask("llama", 1, 1)
