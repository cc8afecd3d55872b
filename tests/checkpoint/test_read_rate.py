"""What repacking would bring: both ways are measured, on runs that lie in the files."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.checkpoint import read_rate
from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.read_rate import ReadRates, measure_read_rates
from moesaic.checkpoint.repack import repack_model
from moesaic.errors import CheckpointError
from moesaic.memory.page import ALIGNMENT, Page, stored_bytes
from moesaic.testing.tiny import tiny_model


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_rate, "_LEAST_BYTES", 1)


def test_pages_are_read_in_turns_as_they_are_and_as_records_when_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tiny_model(hidden_size=64, moe_intermediate_size=64), tmp_path / "model")
    read: list[list[Page]] = []
    real = read_rate.measure_disk_rate

    def measure(pages: list[Page], *rest: Any) -> float:
        read.append(pages)
        return real(pages, *rest)

    monkeypatch.setattr(read_rate, "measure_disk_rate", measure)
    rates = measure_read_rates(tmp_path / "model")
    assert rates is not None
    assert rates.in_place > 0
    assert rates.repacked > 0
    assert [len(pages[0]) for pages in read] == [3, 1, 1, 3, 3, 1, 1, 3, 3, 1]
    for page, record in zip(read[0], read[1], strict=True):
        extent = record[0].extent
        assert extent.offset % ALIGNMENT == extent.num_bytes % ALIGNMENT == 0
        assert extent.offset + extent.num_bytes <= extent.file.stat().st_size
        assert stored_bytes(page) - ALIGNMENT < stored_bytes(record) <= stored_bytes(page)


def test_nothing_is_measured_when_experts_are_records_already_or_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(tiny_model(), tmp_path / "model")
    repack_model(tmp_path / "model", tmp_path / "records")
    repack_model(tmp_path / "model", tmp_path / "few", 4)
    export_model(tiny_model(num_experts=0, num_experts_per_tok=0), tmp_path / "dense")
    assert [measure_read_rates(tmp_path / name) for name in ("records", "few", "dense")] == [None] * 3
    monkeypatch.setattr(read_rate, "_LEAST_BYTES", 2**30)
    assert measure_read_rates(tmp_path / "model") is None


def test_files_smaller_than_a_block_are_measured_when_there_are_no_others(tmp_path: Path) -> None:
    export_model(tiny_model(dtype=torch.bfloat16), tmp_path / "model", shard_bytes=1000)
    assert measure_read_rates(tmp_path / "model") is not None


def test_file_is_named_when_it_cannot_be_read(tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="cannot read"):
        measure_read_rates(tmp_path / "model")


@pytest.mark.parametrize(("repacked", "is_worth"), [(1.0, False), (1.05, False), (1.2, True)])
def test_records_are_worth_it_when_they_are_faster_by_more_than_chance(repacked: float, is_worth: bool) -> None:
    assert ReadRates(1.0, repacked).is_worth is is_worth
