"""Calls to CUDA in their order, where a fake takes its place; `tests/infer/test_cuda.py` asks a device."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from moesaic.errors import UnsupportedError
from moesaic.memory.copy_stream import CudaCopyStream, HostCopyStream, open_copy_stream
from moesaic.memory.disk import Disk
from moesaic.memory.host_tier import HostTier
from moesaic.memory.pool import Pool
from tests.memory.made import LAYOUT


class FakeDriver:
    """As much of CUDA's runtime as pinning asks for."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        """Note what is pinned, or refuse."""
        assert flags == 0
        if self.code == 0:
            self.pinned[address] = num_bytes
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        """Forget it."""
        del self.pinned[address]
        return 0


def _fake_cuda(code: int, monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver(code)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    return driver


def test_all_host_slots_are_pinned_until_the_tier_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _fake_cuda(0, monkeypatch)
    pool = Pool(LAYOUT, 3)
    tier = HostTier(Disk(cached=True, num_threads=1), pool, torch.device("cuda", 0))
    assert driver.pinned == {pool.record(0).ctypes.data: 3 * LAYOUT.num_bytes}
    tier.close()
    assert not driver.pinned


def test_tier_is_refused_when_memory_cannot_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_cuda(2, monkeypatch)
    disk = Disk(cached=True, num_threads=1)
    with pytest.raises(UnsupportedError, match="cannot pin 12 KiB of host memory for cuda:0: CUDA error 2") as caught:
        HostTier(disk, Pool(LAYOUT, 3), torch.device("cuda", 0))
    assert "ulimit -l" in caught.value.hint
    disk.close()


def test_copy_waits_for_the_mark_and_is_waited_for_when_the_device_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    trace: list[object] = []

    class Event:
        def synchronize(self) -> None:
            trace.append("the host waits for the copy")

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_event(self, event: object) -> None:
            trace.append(f"{self.name} wait for {event}")

        def record_event(self, event: Event | None = None) -> object:
            trace.append(f"{self.name} are marked")
            return "the mark" if event is None else event

    class Target:
        def copy_(self, source: torch.Tensor, non_blocking: bool) -> None:
            trace.append(f"copy of {source.tolist()}, the host goes on: {non_blocking}")

    def event(blocking: bool) -> Event:
        assert blocking, "who waits sleeps"
        return Event()

    _fake_cuda(0, monkeypatch)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("kernels"))
    monkeypatch.setattr(
        torch.cuda, "stream", lambda stream: nullcontext(trace.append(f"on the stream of {stream.name}"))
    )
    monkeypatch.setattr(torch.cuda, "Event", event)
    stream = CudaCopyStream(torch.device("cuda", 0))
    mark = stream.mark()
    wait = stream.begin(np.array([7], np.uint8), Target(), mark)  # type: ignore[arg-type]
    trace.append("begun")
    wait()
    assert trace == [
        "kernels are marked",
        "on the stream of copies",
        "copies wait for the mark",
        "copy of [7], the host goes on: True",
        "copies are marked",
        "begun",
        "the host waits for the copy",
    ]


def test_copies_have_a_stream_of_their_own_when_the_device_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_cuda(0, monkeypatch)
    assert isinstance(open_copy_stream(torch.device("cuda", 1)), CudaCopyStream)
    assert isinstance(open_copy_stream(torch.device("cpu")), HostCopyStream)
