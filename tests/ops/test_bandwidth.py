"""The bandwidth is that of the fastest reader, from the clock and the bytes."""

import pytest
import torch

from moesaic.ops.cpu import bandwidth as room
from moesaic.ops.cpu.bandwidth import read_bandwidth


def test_bandwidth_is_positive_when_measured() -> None:
    assert read_bandwidth(2**20, repeats=3) > 0


def test_fastest_reader_counts_when_readers_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 9.0, 2.0, 1.0, 2.0, 0.5, 2.0, 4.0])  # the first round does not count
    monkeypatch.setattr(room, "load_library", lambda: None)
    monkeypatch.setattr(room, "_READERS", dict(list(room._READERS.items())[:2]))
    monkeypatch.setattr(room, "_time", lambda _: next(times))
    assert read_bandwidth(4096, repeats=3) == 4096
    assert next(times, None) is None


@pytest.mark.parametrize("name", room._READERS)
def test_reader_sees_every_byte_when_it_reads(name: str) -> None:
    read = room._READERS[name]
    buffer = torch.zeros(2**16, dtype=torch.uint8)
    last = buffer.clone()
    last[-4] = 1
    assert not torch.equal(torch.as_tensor(read(buffer)), torch.as_tensor(read(last)))
