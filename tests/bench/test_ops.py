"""The benchmark of the experts: equal work, a result that says what was done and what was missed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.bench import ops as room
from moesaic.bench import workload
from moesaic.bench.candidate import CANDIDATES, Candidate, Prepared
from moesaic.bench.ops import Case, bench_ops, list_cases
from moesaic.bench.shape import Shape
from moesaic.bench.workload import Layer
from moesaic.errors import ConfigError, MoesaicError

SMALL = Shape(1024, 64, 32, 4, 2)
NO_PEERS = Path("/no/such/environment")


@pytest.fixture(autouse=True)
def _small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SHAPES", {"narrow": SMALL})
    monkeypatch.setattr(room, "GROUPS", (("narrow", torch.bfloat16), ("narrow", torch.float32)))
    monkeypatch.setattr(room, "TOKENS", (1, 64, 1024))
    monkeypatch.setattr(room, "MODEL", SMALL)
    monkeypatch.setattr(room, "_MODEL_LAYERS", 2)
    monkeypatch.setattr(room, "_MODEL_VOCABULARY", 128)
    monkeypatch.setattr(workload, "_COLD_BYTES", 2 * 4 * 4 * SMALL.expert_size)  # two layers of float32
    monkeypatch.setattr(room, "read_bandwidth", lambda: 1e9)


def _run(words: str = "", peers: Path = NO_PEERS) -> dict[str, Any]:
    return json.loads(json.dumps(bench_ops(3, words, peers, lambda *_: None)))


def test_result_holds_every_case_with_times_ratios_and_targets_when_all_are_measured() -> None:
    result = _run()
    assert result.keys() == {"benchmark", "machine", "repeats", "cases", "targets"}
    assert result["machine"]["deepspeed"] == "not measured: run make peers"
    assert [case["name"] for case in result["cases"]] == [case.name for case in list_cases()]
    for case in result["cases"]:
        assert all({"median_ms", "iqr_ms"} <= each.keys() for each in case["times"].values())
        assert case["over_transformers"] > 0
        assert ("over_dense" in case) == (case["level"] != "train_step")
        assert "over_deepspeed" not in case
    # Three forward, three backward and four of one token, for both routings; and the training step.
    assert len(result["targets"]) == (3 + 3 + 4) * 2 + 1
    missing = {(row["figure"], row["reason"]) for row in result["targets"] if row["found"] is None}
    assert missing == {("deepspeed / moesaic", "not measured: run make peers")}


def test_one_token_is_held_against_the_bandwidth_when_its_layers_take_turns() -> None:
    (case,) = _run("forward bfloat16 zipf T1")["cases"]
    read_bytes = SMALL.chosen * SMALL.expert_size * 2
    assert case["layers"] == 4
    seconds = case["times"]["moesaic"]["median_ms"] / 1e3
    assert case["read_gb_per_s"] == pytest.approx(read_bytes / seconds / 1e9, abs=0.01)
    assert case["percent_of_bandwidth"] == pytest.approx(100 * case["read_gb_per_s"], abs=0.1)
    assert case["times"].keys() == set(CANDIDATES)


def test_fastest_reading_of_the_run_counts_when_a_moment_was_slow() -> None:
    reports = [{"read_gb_per_s": 9.0, "bandwidth_gb_per_s": each} for each in (5.0, 10.0)]
    room._compare_bandwidth([*reports, {}])
    assert [report["percent_of_bandwidth"] for report in reports] == [90.0, 90.0]


def test_candidates_are_those_that_can_when_there_are_many_tokens_or_gradients() -> None:
    forward, backward = _run("narrow bfloat16 uniform T1024")["cases"]
    assert forward["times"].keys() == set(CANDIDATES) - {"batched_mm"}
    assert backward["times"].keys() == {name for name, each in CANDIDATES.items() if each.trains}
    (without_eager,) = _run("forward_backward bfloat16 zipf")["cases"]
    assert "eager" not in without_eager["times"]


def test_figures_are_those_of_the_medians_when_a_case_is_told() -> None:
    case = Case("forward_backward", "narrow", torch.bfloat16, "uniform", 1024)
    times = {"moesaic": 0.002, "grouped_mm": 0.006, "eager": 0.004, "dense": 0.003, "dense_split": 0.001}
    report = room._report(case, SMALL, {name: [each] * 3 for name, each in times.items()})
    assert (report["over_transformers"], report["over_dense"]) == (2.0, 0.5)
    # Two products' worth of flops for each weight and pair, three times, in 2 ms.
    flops = 3 * 2 * 1024 * 2 * SMALL.expert_size
    assert report["times"]["moesaic"]["gflop_per_s"] == pytest.approx(flops / 2e-3 / 1e9, abs=0.1)


def test_layers_and_inputs_take_turns_from_the_given_one_when_called() -> None:
    prepared = [Prepared(lambda inputs, name=name: (name, inputs), ()) for name in "abc"]
    call = room._take_turns(prepared, [0, 1, 2, 3], first=1, shift=0)
    assert [call() for _ in range(5)] == [("b", 1), ("c", 2), ("a", 3), ("b", 0), ("c", 1)]
    other = room._take_turns(prepared, [0, 1, 2, 3], first=2, shift=2)
    assert [other() for _ in range(3)] == [("c", 0), ("a", 1), ("b", 2)]


@pytest.mark.parametrize("level", ["forward", "forward_backward"])
def test_nothing_is_timed_when_a_candidate_has_other_weights(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = CANDIDATES["grouped_mm"]

    def prepare_other(layer: Layer, shape: Shape) -> Prepared:
        down = layer.down.detach().clone()
        down[0] *= 1.05
        return honest.prepare(Layer(layer.gate_up, torch.nn.Parameter(down)), shape)

    timed: list[Any] = []
    monkeypatch.setitem(CANDIDATES, "grouped_mm", Candidate(prepare_other, rival="moesaic"))
    monkeypatch.setattr(room, "measure", lambda *arguments: timed.append(arguments))
    with pytest.raises(MoesaicError, match=r"the result of grouped_mm differs by .* more than 2e-02"):
        _run(f"{level} bfloat16 uniform T1024")
    assert timed == []


def test_gradients_are_compared_before_they_are_timed_when_training(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Prepared.backward
    turns = iter([1.0, 1.1])
    monkeypatch.setattr(
        Prepared,
        "backward",
        lambda self, inputs, turns=turns: (*backward(self, inputs)[:3], backward(self, inputs)[3] * next(turns)),
    )
    with pytest.raises(MoesaicError, match="the gradient of down of grouped_mm differs"):
        _run("forward_backward float32 uniform")


def test_case_is_refused_with_an_example_when_no_case_is_called_so() -> None:
    with pytest.raises(ConfigError, match="no case is called 'forward T2'") as raised:
        list_cases("forward T2")
    assert "forward narrow bfloat16 uniform T1" in raised.value.hint


def test_progress_counts_the_cases_when_they_are_measured() -> None:
    seen: list[Any] = []
    bench_ops(3, "forward bfloat16 uniform", NO_PEERS, lambda *step: seen.append(step))
    assert [(done, total) for done, total, _ in seen] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert seen[0][2] == "forward narrow bfloat16 uniform T1"
