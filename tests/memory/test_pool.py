"""Slots and their memory."""

import re
from pathlib import Path

import pytest
import torch

from moesaic.memory.page import PageLayout
from moesaic.memory.pool import Pool

MIB = 2**20


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the system does not tell")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_slot_takes_memory_when_it_is_written_and_gives_it_back() -> None:
    pool = Pool(PageLayout.of({"weights": ((8 * MIB,), torch.uint8)}), 8)
    before = _anonymous_bytes()
    pool.record(2)[:] = 1
    pool.record(5)[:] = 2
    assert 15 * MIB < _anonymous_bytes() - before < 20 * MIB
    pool.give_back(5)
    assert 7 * MIB < _anonymous_bytes() - before < 12 * MIB
    assert bool((pool.fields["weights"][2] == 1).all())
    assert not pool.fields["weights"][5].any()
