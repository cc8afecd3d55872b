"""`moesaic bench`: what is asked of the benchmarks, and how their results are given."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesaic.bench import checkpoint, comm, generation, infer, ops, ranks, train
from tests.cli.command import Run, check_two_lines

DIMS = {"T": 1024, "D": 256, "F": 128, "E": 8, "K": 2}
TIMES = {name: {"median_ms": 2.0, "iqr_ms": 0.1} for name in ("moesaic", "transformers")}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked for; nothing is measured."""
    asked: list[Any] = []

    def bench_train(repeats: int) -> dict[str, Any]:
        asked.append(repeats)
        case = {"level": "model", "dtype": "float32", **DIMS, "times": TIMES, "over_transformers": 1.0}
        return {"benchmark": "train", "cases": [case]}

    def bench_ops(repeats: int, words: str, peers: Path, progress: Any) -> dict[str, Any]:
        asked.append((repeats, words, peers))
        progress(0, 1, "a case")
        case = {"name": "a case", "times": TIMES, "over_transformers": 1.0, "over_dense": 0.5}
        target = {"case": "a case", "figure": "a / b", "at": "most", "limit": 1.25}
        return {
            "benchmark": "ops",
            "machine": {"deepspeed": "not measured: run make peers"},
            "cases": [case],
            "targets": [
                {**target, "found": 1.5, "met": False},
                {**target, "found": None, "met": False, "reason": "not measured"},
            ],
        }

    monkeypatch.setattr(train, "bench_train", bench_train)
    monkeypatch.setattr(ops, "bench_ops", bench_ops)
    monkeypatch.setenv("COLUMNS", "200")
    return asked


def test_result_is_one_object_on_standard_output_and_a_table_beside_it_when_measured(
    cli: Run, measured: list[Any]
) -> None:
    answer = cli("bench", "train", "--repeats", 5)
    assert (answer.code, measured) == (0, [5])
    assert len(answer.out.splitlines()) == 1
    assert json.loads(answer.out)["command"] == "moesaic bench train --repeats 5"
    assert "1024 256 128 8 2" in answer.err


def test_operations_are_measured_as_asked_and_told_in_two_tables_when_benched(cli: Run, measured: list[Any]) -> None:
    answer = cli("bench", "ops", "--repeats", 5, "--case", "forward T1", "--peers", "somewhere")
    assert (answer.code, measured) == (0, [(5, "forward T1", Path("somewhere"))])
    assert json.loads(answer.out)["command"] == "moesaic bench ops --repeats 5 --case 'forward T1'"
    assert len(answer.out.splitlines()) == 1
    assert "at most 1.25" in answer.err
    assert "1.50" in answer.err
    assert "DeepSpeed: not measured: run make peers" in answer.err


def test_all_operations_are_measured_when_no_case_is_named(cli: Run, measured: list[Any]) -> None:
    assert json.loads(cli("bench", "ops").out)["command"] == "moesaic bench ops --repeats 20"
    assert measured == [(20, "", Path(".venv-peers"))]


@pytest.mark.parametrize("name", ["train", "ops"])
def test_result_is_written_too_when_a_file_is_named(name: str, cli: Run, tmp_path: Path) -> None:
    answer = cli("bench", name, "--out", tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(answer.out)


@pytest.mark.parametrize("name", ["train", "ops"])
def test_bench_is_refused_before_it_measures_when_the_file_cannot_be_written(
    name: str, cli: Run, measured: list[Any], tmp_path: Path
) -> None:
    check_two_lines(cli("bench", name, "--out", tmp_path / "none" / "result.json"), "lies in no folder")
    check_two_lines(cli("bench", name, "--out", tmp_path), "is a folder")
    assert measured == []


def test_generation_is_measured_as_asked_and_told_in_two_tables_when_benched(
    cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def run(work: infer.Work, names: list[str], progress: Any) -> dict[str, Any]:
        asked.append((work.repeats, work.steps, work.trace, names))
        progress("a case")
        rates = {"tokens_per_s": 3.25, "prefill_s": 1.5}
        rows = [{"figure": "moesaic / llama", "at": "least", "limit": 5.0, "found": None, "met": False}]
        return {
            "cases": [
                {"name": "a case", "moesaic": rates, "llama": {"refused": "it is out"}, "targets": rows},
                {"name": "another", **rates},
            ]
        }

    monkeypatch.setattr(infer, "bench_infer", run)
    monkeypatch.setattr(generation, "make_programs", lambda cache, peers, show: (cache, peers))
    answer = cli("bench", "infer", "--case", "decode", "--trace", tmp_path / "t", "--steps", 9, "--cache", tmp_path)
    assert (answer.code, asked) == (0, [(1, 9, tmp_path / "t", ["decode"])])
    assert json.loads(answer.out)["command"] == "moesaic bench infer --repeats 1 --steps 9 --case decode --trace FILE"
    for part in ("3.25", "it is out", "at least 5", "not measured", "another"):
        assert part in answer.err, part


def test_generation_is_refused_when_a_case_is_unknown(cli: Run) -> None:
    check_two_lines(cli("bench", "infer", "--case", "speed"), "unknown case 'speed'")


def test_ranks_are_measured_and_told_in_two_tables_when_given(
    cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def run(num_ranks: int, repeats: int, peers: Path, progress: Any) -> dict[str, Any]:
        asked.append((num_ranks, repeats, peers))
        progress("a case")
        case = {
            **dict(zip("TDFEK", (2048, 512, 1024, 16, 2), strict=True)),
            "layers": 4,
            "dtype": "bfloat16",
            "times": {"moesaic": {"median_ms": 12.5}},
            "tokens_per_s": {"moesaic": 163840},
            "peak_mib": {"moesaic": 77.7},
            "targets": [
                {"figure": "deepspeed / moesaic, time", "at": "least", "limit": 1.33, "found": 1.5, "met": True}
            ],
        }
        return {"machine": {"ranks": num_ranks}, "cases": [case]}

    monkeypatch.setattr(ranks, "bench_ranks", run)
    answer = cli("bench", "train", "--ranks", 2, "--repeats", 5, "--peers", tmp_path)
    assert (answer.code, asked) == (0, [(2, 5, tmp_path)])
    assert json.loads(answer.out)["command"] == "moesaic bench train --ranks 2 --repeats 5"
    for part in ("2048 512 1024 16 2, bfloat16", "12.5", "163,840", "78", "at least 1.33", "yes"):
        assert part in answer.err, part


_COMM = {
    "machine": {"ranks": 4, "nodes": 2},
    "cases": {
        "all_to_all": [{"bytes_a_pair": 64, "ms": {"flat": 0.712, "hierarchical": 0.513}}],
        "buckets": [{"bucket_bytes": "unfused", "collectives": 31, "bytes": 500, "ms": 57.25}],
        "chunks": {"T": 2048, "ms": {"1": 9.5, "2": 7.25}, "chosen": 2, "best": 2, "profile": ["messages: 3 ms"]},
        "gradients": {"ms": {"whole": 77.5}},
        "fits": {"all_reduce": {"alpha_s": 0.0125, "beta_s": 1e-9, "error": 0.1}},
    },
    "targets": [{"figure": "whole / chosen chunks", "at": "least", "limit": 1.2, "found": 1.31, "met": True}],
}


def test_messages_are_measured_and_told_in_two_tables_when_asked_for(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[comm.Asked] = []
    monkeypatch.setattr(comm, "bench_comm", lambda each, report: (asked.append(each), report("x"), dict(_COMM))[-1])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    answer = cli("bench", "comm", "--ranks", 4, "--repeats", 5, "--case", "chunks")
    assert (answer.code, asked) == (0, [comm.Asked(4, 5, ("chunks",))])
    assert json.loads(answer.out)["command"] == "moesaic bench comm --ranks 4 --repeats 5 --case chunks"
    told = (
        "4 ranks, 2 machines",
        "0.513",
        "31 messages",
        "chosen, best",
        "7.2",
        "77.5",
        "12.500 + 1.049",
        "at least 1.2",
    )
    for part in (*told, "messages: 3 ms"):
        assert part in answer.err, part


def test_first_rank_alone_tells_when_torchrun_has_started_them(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for result in (dict(_COMM), None):
        monkeypatch.setattr(comm, "bench_rank", lambda asked, report, result=result: result)
        answer = cli("bench", "comm")
        assert answer.code == 0
        assert bool(answer.out) == (result is not None)


def test_messages_are_refused_when_a_case_is_unknown(cli: Run) -> None:
    check_two_lines(cli("bench", "comm", "--case", "speed"), "unknown case 'speed'")


def test_checkpoints_are_measured_as_asked_when_benched(
    cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def bench_checkpoint(num_ranks: int, repeats: int, folder: Path | None) -> dict[str, Any]:
        asked.append((num_ranks, repeats, folder))
        target = {"figure": "torch_save / stall", "at": "least", "limit": 20.0, "found": 31.5, "met": True}
        case = {"name": "1 GB", "times": {"stall": TIMES["moesaic"]}, "targets": [target]}
        return {"benchmark": "checkpoint", "machine": {"ranks": num_ranks}, "cases": [case]}

    monkeypatch.setattr(checkpoint, "bench_checkpoint", bench_checkpoint)
    answer = cli("bench", "checkpoint", "--repeats", 4, "--folder", tmp_path)
    assert (answer.code, asked) == (0, [(2, 4, tmp_path)])
    assert json.loads(answer.out)["command"] == "moesaic bench checkpoint --repeats 4 --ranks 2"
    assert "torch_save / stall" in answer.err
    check_two_lines(cli("bench", "checkpoint", "--folder", tmp_path / "none"), "is no folder")
