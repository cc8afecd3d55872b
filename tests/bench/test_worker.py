"""Peers asked once: what they answer is read, and how they end is told."""

from pathlib import Path

import pytest

from moesaic.bench.limited import run_limited
from moesaic.bench.worker import ask_worker
from moesaic.errors import MemoryBudgetError, MoesaicError, UnsupportedError

MIB = 2**20


def _python(folder: Path, script: str) -> Path:
    """Make an interpreter that does the same whatever it is given."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return python


@pytest.fixture
def _can_limit() -> None:
    try:
        run_limited(["true"], 64 * MIB)
    except UnsupportedError as error:
        pytest.skip(error.text)


def test_last_line_is_the_answer_when_the_worker_chats(tmp_path: Path) -> None:
    answer = ask_worker(_python(tmp_path, "echo hello; cat"), "llama", {"threads": 2})
    assert (answer.values, answer.peak_bytes) == ({"threads": 2}, None)


@pytest.mark.usefixtures("_can_limit")
def test_peak_is_told_when_memory_is_limited(tmp_path: Path) -> None:
    answer = ask_worker(_python(tmp_path, "cat"), "llama", {"threads": 2}, limit_bytes=64 * MIB)
    assert answer.values == {"threads": 2}
    assert answer.peak_bytes is not None
    assert 0 < answer.peak_bytes < 64 * MIB


@pytest.mark.usefixtures("_can_limit")
def test_peer_that_needs_more_is_named_when_the_kernel_kills_it(tmp_path: Path) -> None:
    greedy = _python(tmp_path, "exec python3 -c 'bytearray(200 * 2**20)'")
    with pytest.raises(MemoryBudgetError, match="llama needs more memory than 64 MiB"):
        ask_worker(greedy, "llama", {}, limit_bytes=64 * MIB)


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo first >&2; echo cannot go on >&2; exit 1", "cannot go on"), ("exit 4", r"it said nothing \(status 4\)")],
)
def test_last_words_are_told_when_the_worker_fails(tmp_path: Path, script: str, reason: str) -> None:
    with pytest.raises(MoesaicError, match=f"the process of llama ended: {reason}"):
        ask_worker(_python(tmp_path, script), "llama", {})


def test_worker_is_ended_when_the_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(MoesaicError, match=r"the process of llama took longer than 0\.2 s"):
        ask_worker(_python(tmp_path, "exec sleep 60"), "llama", {}, timeout_s=0.2)
