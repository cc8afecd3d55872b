"""The rate of a disk, from pages that are read and the clock."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moesaic.errors import CheckpointError
from moesaic.memory.disk import Disk
from moesaic.memory.page import Extent, Page, PageLayout, Piece
from moesaic.memory.probe import measure_disk_rate

LAYOUT = PageLayout.of({"all": ((4096,), torch.uint8)})
NUM_PAGES = 20


@pytest.fixture
def disk() -> Iterator[Disk]:
    """A disk that leaves nothing in the page cache."""
    disk = Disk()
    yield disk
    disk.close()


@pytest.fixture
def pages(tmp_path: Path) -> list[Page]:
    """Pages that lie one after another in a file."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(NUM_PAGES * 4096))
    return [(Piece(Extent(file, 4096 * index, 4096), torch.uint8, torch.uint8, 0),) for index in range(NUM_PAGES)]


def test_rate_is_that_of_all_pages_when_there_is_time(pages: list[Page], disk: Disk) -> None:
    began = time.perf_counter()
    rate = measure_disk_rate(pages, LAYOUT, disk, seconds=math.inf)
    assert disk.bytes_read == NUM_PAGES * 4096
    assert disk.bytes_read / (time.perf_counter() - began) <= rate <= disk.bytes_read / disk.busy_seconds


def test_few_pages_are_read_when_time_is_short(pages: list[Page], disk: Disk) -> None:
    assert measure_disk_rate(pages, LAYOUT, disk, seconds=0.0) > 0
    assert disk.bytes_read == 4 * 4096


def test_rate_is_measured_when_there_is_one_page(pages: list[Page], disk: Disk) -> None:
    assert measure_disk_rate(pages[:1], LAYOUT, disk) > 0
    assert disk.bytes_read == 4096


def test_checksums_are_not_compared_when_later_reads_are_measured(pages: list[Page], disk: Disk) -> None:
    pages = [(replace(page[0], checksum=5),) for page in pages]
    assert measure_disk_rate(pages, LAYOUT, disk) > 0


def test_file_is_named_when_it_cannot_be_read(pages: list[Page], disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "weights").unlink()
    with pytest.raises(CheckpointError, match="cannot open"):
        measure_disk_rate(pages, LAYOUT, disk)
