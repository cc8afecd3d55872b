"""`moesaic bench train`."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesaic.bench import train as room
from tests.cli.command import Run, check_two_lines


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of repeats that were asked for; nothing is measured."""
    repeats: list[int] = []
    times = {name: {"median_ms": 2.0, "iqr_ms": 0.1} for name in ("moesaic", "transformers")}
    dims = {"T": 1024, "D": 256, "F": 128, "E": 8, "K": 2}
    case = {"level": "model", "dtype": "float32", **dims, "times": times, "over_transformers": 1.0}

    def bench_train(number: int) -> dict[str, Any]:
        repeats.append(number)
        return {"benchmark": "train", "cases": [case]}

    monkeypatch.setattr(room, "bench_train", bench_train)
    return repeats


def test_result_is_one_object_on_standard_output_and_a_table_beside_it_when_measured(
    cli: Run, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    answer = cli("bench", "train", "--repeats", 5)
    assert (answer.code, measured) == (0, [5])
    assert len(answer.out.splitlines()) == 1
    assert json.loads(answer.out)["command"] == "moesaic bench train --repeats 5"
    assert "1024 256 128 8 2" in answer.err


def test_result_is_written_too_when_a_file_is_named(cli: Run, tmp_path: Path) -> None:
    answer = cli("bench", "train", "--out", tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(answer.out)


def test_bench_is_refused_before_it_measures_when_the_file_cannot_be_written(
    cli: Run, measured: list[int], tmp_path: Path
) -> None:
    check_two_lines(cli("bench", "train", "--out", tmp_path / "none" / "result.json"), "lies in no folder")
    check_two_lines(cli("bench", "train", "--out", tmp_path), "is a folder")
    assert measured == []
