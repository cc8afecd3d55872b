"""Reading at positions, directly and not, and what goes wrong."""

import errno
import mmap
import os
import threading
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import CheckpointError
from moesaic.memory import disk as disk_room
from moesaic.memory.disk import Disk, Reading
from moesaic.memory.file import WeightsFile
from moesaic.memory.page import ALIGNMENT, Extent, Piece
from tests.memory.made import LAYOUT, holds, write_pages

CONTENT = np.random.default_rng(0).integers(0, 256, 5 * ALIGNMENT + 77, dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def content_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that ends within a block."""
    path = tmp_path_factory.mktemp("disk") / "content"
    path.write_bytes(CONTENT)
    return path


def _bytes_piece(path: Path, offset: int, num_bytes: int, start: int = 0) -> Piece:
    return Piece(Extent(path, offset, num_bytes), torch.uint8, torch.uint8, start)


def _aligned(num_bytes: int) -> np.ndarray:
    room = np.zeros(num_bytes + ALIGNMENT, np.uint8)
    return room[-room.ctypes.data % ALIGNMENT :][:num_bytes]


@pytest.mark.parametrize("cached", [False, True])
@settings(max_examples=40)
@given(data=st.data())
def test_bytes_are_those_of_the_file_when_read_anywhere(content_file: Path, cached: bool, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(CONTENT)) | st.just(ALIGNMENT))
    num_bytes = data.draw(st.integers(0, len(CONTENT) - offset) | st.just(min(ALIGNMENT, len(CONTENT) - offset)))
    record = _aligned(num_bytes)
    disk = Disk(cached, num_threads=1)
    disk.read((_bytes_piece(content_file, offset, num_bytes),), record).wait()
    disk.close()
    assert record.tobytes() == CONTENT[offset : offset + num_bytes]
    assert disk.bytes_read == num_bytes


def test_file_is_opened_for_direct_reads_when_it_is_not_to_be_cached(
    content_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flag: flags.append(flag) or real(path, flag))
    file = WeightsFile(content_file, cached=False)
    assert file.is_direct == bool(flags[-1] & os.O_DIRECT)
    file.close()
    file = WeightsFile(content_file, cached=True)
    assert not file.is_direct
    assert not flags[-1] & os.O_DIRECT
    file.close()


@pytest.mark.parametrize("refusal", ["open", "read"])
def test_reads_are_buffered_and_dropped_when_direct_ones_are_refused(
    content_file: Path, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    real_open, real_read, dropped = os.open, os.preadv, []

    def refuse_open(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT and refusal == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags)

    def refuse_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") and len(dropped) == 0 and refusal == "read":
            dropped.append("refused")
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "open", refuse_open)
    monkeypatch.setattr(os, "preadv", refuse_read)
    monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, length, advice: dropped.append((offset, length, advice)))
    file = WeightsFile(content_file, cached=False)
    assert not file.is_direct
    place = np.zeros(100, np.uint8)
    file.read(11, place, np.zeros(0, np.uint8))
    assert place.tobytes() == CONTENT[11:111]
    assert dropped[-1] == (11, 100, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_values_are_cast_as_torch_does_when_another_dtype_is_kept(
    tmp_path: Path, stored: torch.dtype, kept: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "_CHUNK_BYTES", 64)
    values = torch.randn(1000).to(stored)
    path = tmp_path / "values"
    path.write_bytes(b"odd" + values.view(torch.uint8).numpy().tobytes())
    record = np.zeros(64 + 1000 * kept.itemsize, np.uint8)
    disk = Disk()
    disk.read((Piece(Extent(path, 3, values.nbytes), stored, kept, 64),), record).wait()
    disk.close()
    assert torch.equal(torch.from_numpy(record[64:]).view(kept), values.to(kept))


def test_pages_are_whole_when_many_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "_CHUNK_BYTES", 32)
    pages = write_pages(tmp_path, 3, 7)
    records = {(layer, expert): np.zeros(LAYOUT.num_bytes, np.uint8) for layer in pages for expert in range(7)}
    disk, ended = Disk(num_threads=3), []
    readings = [
        disk.read(pages[layer][expert], record, lambda key=(layer, expert): ended.append(key))
        for (layer, expert), record in records.items()
    ]
    for reading in readings:
        reading.wait()
    disk.close()
    assert sorted(ended) == sorted(records)
    assert all(holds(record, layer, expert) for (layer, expert), record in records.items())


def test_buffers_take_what_is_reckoned_with_when_nobody_says_how_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    real, taken = mmap.mmap, []
    monkeypatch.setattr(mmap, "mmap", lambda file, size: taken.append(size) or real(file, size))
    Disk().close()
    assert sum(taken) == disk_room.DISK_BUFFERS_BYTES


def test_what_is_urgent_is_read_first_when_more_waits(tmp_path: Path) -> None:
    pages = write_pages(tmp_path, 1, 4)[0]
    disk, order, may_go_on = Disk(num_threads=1), [], threading.Event()
    records = [np.zeros(LAYOUT.num_bytes, np.uint8) for _ in pages]
    readings = [disk.read(pages[0], records[0], may_go_on.wait)]  # holds the only thread
    for index, urgent in ((1, False), (2, False), (3, True)):
        readings.append(disk.read(pages[index], records[index], partial(order.append, index), urgent))
    may_go_on.set()
    for reading in readings:
        reading.wait()
    disk.close()
    assert order == [3, 1, 2]


def test_read_is_refused_with_file_and_offset_when_the_file_is_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(CONTENT[:5000])
    disk = Disk()
    reading = disk.read((_bytes_piece(path, 4990, 30),), np.zeros(30, np.uint8))
    with pytest.raises(CheckpointError, match=r"short' ends at byte 5000, 20 more were expected"):
        reading.wait()
    disk.close()


def test_read_is_refused_when_the_file_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "changing"
    path.write_bytes(CONTENT)
    disk = Disk()
    piece, record = _bytes_piece(path, 8, 30), np.zeros(30, np.uint8)
    disk.read((piece,), record).wait()
    with path.open("r+b") as stream:
        stream.write(b"other")
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"changing' has changed since it was opened, found when reading byte"):
        disk.read((piece,), record).wait()
    disk.close()


def test_file_is_read_on_when_it_is_removed_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "going"
    path.write_bytes(CONTENT)
    disk = Disk()
    record = np.zeros(30, np.uint8)
    disk.read((_bytes_piece(path, 0, 30),), record).wait()
    path.unlink()
    disk.read((_bytes_piece(path, 100, 30),), record).wait()
    disk.close()
    assert record.tobytes() == CONTENT[100:130]


def test_read_is_refused_when_the_file_is_not_there(tmp_path: Path) -> None:
    disk = Disk()
    with pytest.raises(CheckpointError, match=r"cannot open '.*gone': No such file"):
        disk.read((_bytes_piece(tmp_path / "gone", 0, 1),), np.zeros(1, np.uint8)).wait()
    disk.close()


def test_open_is_refused_with_the_reason_when_it_is_none_of_direct_reads(
    content_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(CheckpointError, match="Permission denied"):
        WeightsFile(content_file, cached=False)


def test_one_page_fails_and_others_come_when_the_disk_has_a_bad_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = write_pages(tmp_path, 2, 1)
    bad, real = tmp_path / "layer-1.bin", os.preadv

    def read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(bad) and len(buffers[0]) != ALIGNMENT:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, buffers, offset)

    disk = Disk(cached=True)
    monkeypatch.setattr(os, "preadv", read)
    records = [np.zeros(LAYOUT.num_bytes, np.uint8) for _ in range(2)]
    readings = [disk.read(pages[layer][0], records[layer]) for layer in range(2)]
    with pytest.raises(CheckpointError, match=r"cannot read '.*layer-1.bin' at byte \d+: Input/output error"):
        readings[1].wait()
    readings[0].wait()
    assert holds(records[0], 0, 0)
    monkeypatch.setattr(os, "preadv", real)
    disk.read(pages[1][0], records[1]).wait()
    disk.close()
    assert holds(records[1], 1, 0)


def _checked_piece(path: Path, checksum: int, offset: int = ALIGNMENT, num_bytes: int = 3 * ALIGNMENT) -> Piece:
    return replace(_bytes_piece(path, offset, num_bytes), checksum=checksum)


@pytest.mark.parametrize("chunk_bytes", [ALIGNMENT, 2**21])
def test_damage_is_told_with_file_and_offset_when_a_checksum_differs(
    content_file: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "_CHUNK_BYTES", chunk_bytes)
    right = zlib.crc32(CONTENT[ALIGNMENT : 4 * ALIGNMENT])
    disk, record = Disk(), _aligned(3 * ALIGNMENT)
    told = rf"content' is damaged: 12288 bytes from byte 4096 on have checksum {right:08x}, {right ^ 1:08x} was written"
    for _ in range(2):  # it is not taken for whole because it has been read
        with pytest.raises(CheckpointError, match=told):
            disk.read((_checked_piece(content_file, right ^ 1),), record).wait()
    disk.read((_checked_piece(content_file, right),), record).wait()
    disk.close()


def test_end_is_reported_after_the_checksum_is_compared_when_damaged(content_file: Path) -> None:
    disk, record, seen = Disk(), _aligned(3 * ALIGNMENT), []
    readings: list[Reading] = []
    ready = threading.Event()

    def note() -> None:
        ready.wait()
        seen.append(readings[0].failure)

    readings.append(disk.read((_checked_piece(content_file, 5),), record, note))
    ready.set()
    disk.close()
    assert isinstance(seen[0], CheckpointError)


def test_failure_to_read_is_told_when_there_is_a_checksum_too(tmp_path: Path) -> None:
    disk = Disk()
    with pytest.raises(CheckpointError, match="cannot open"):
        disk.read((_checked_piece(tmp_path / "gone", 5),), _aligned(3 * ALIGNMENT)).wait()
    disk.close()
