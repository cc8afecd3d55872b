"""The C allocator's settings."""

import ctypes
import logging
from typing import Any

import pytest
import torch

from moesaic.hw.allocator import give_back_freed_memory, keep_freed_memory
from moesaic.hw.memory import held_bytes


class _CLibrary:
    def __init__(self, accepts: bool) -> None:
        self.calls: list[tuple[int, int]] = []
        self.accepts = accepts

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return int(self.accepts)


def test_freed_memory_is_kept_when_the_c_library_takes_both_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    library = _CLibrary(accepts=True)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert keep_freed_memory()
    assert [parameter for parameter, _ in library.calls] == [-3, -1]


def test_answer_is_no_when_the_c_library_refuses_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _CLibrary(accepts=False))
    assert not keep_freed_memory()


@pytest.mark.parametrize("failure", [OSError("no such library"), AttributeError("mallopt")])
def test_reason_is_logged_when_the_c_library_has_no_mallopt(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: Any) -> Any:
        raise failure

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with caplog.at_level(logging.INFO, logger="moesaic.hw.allocator"):
        assert not keep_freed_memory()
    assert "has no mallopt" in caplog.text


def test_freed_memory_goes_to_the_kernel_when_it_is_given_back() -> None:
    assert keep_freed_memory()
    # Many, so that they come from the heap whatever its threshold is.
    blocks = [torch.ones(2**14) for _ in range(1000)]
    before = held_bytes()
    del blocks
    assert give_back_freed_memory()
    assert held_bytes() < before - 30 * 2**20


def test_answer_is_no_when_the_c_library_cannot_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _CLibrary(accepts=True))
    assert not give_back_freed_memory()
