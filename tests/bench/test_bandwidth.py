"""The bandwidth is that of the fastest reader, from the clock and the bytes."""

import pytest
import torch

from moesaic.bench import bandwidth as room
from moesaic.bench.bandwidth import read_bandwidth


def test_bandwidth_is_positive_when_measured() -> None:
    assert read_bandwidth(2**20, repeats=3) > 0


def test_fastest_reader_counts_when_readers_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "measure", lambda *_, **__: {"slow": [2.0] * 3, "fast": [1.0, 0.5, 4.0]})
    assert read_bandwidth(4096) == 4096


@pytest.mark.parametrize("name", room._READERS)
def test_reader_sees_every_byte_when_it_reads(name: str) -> None:
    read = room._READERS[name]
    buffer = torch.zeros(2**16, dtype=torch.uint8)
    last = buffer.clone()
    last[-4] = 1
    assert not torch.equal(torch.as_tensor(read(buffer)), torch.as_tensor(read(last)))
