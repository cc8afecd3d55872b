"""What only a real device can show of experts that come to it through the host. `test_device.py` has the rest."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from moesaic.checkpoint import paged as paged_room
from moesaic.checkpoint.budget import DENSE
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.paged import open_paged_model
from moesaic.infer.engine import LLM
from moesaic.memory.copy_stream import CudaCopyStream
from moesaic.memory.device_pool import DevicePool
from moesaic.memory.disk import Disk
from moesaic.memory.host_tier import HostTier
from moesaic.memory.pool import Pool
from moesaic.testing.tolerance import TOLERANCES, relative_error
from tests.infer.test_device import _logits
from tests.infer.test_runner import PROMPTS
from tests.memory.made import LAYOUT, holds, write_pages

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda", 0)
NUM_PAGES = 2 * 5
# About a second of a kernel that does nothing.
LONG_CYCLES = 2_000_000_000


def _logits_on_device(folder: Path, dtype: str, slots: tuple[int, int], patch: pytest.MonkeyPatch) -> list[Tensor]:
    patch.setattr(paged_room, "count_slots", lambda _, taken, *__: slots[DENSE not in taken])
    paged = open_paged_model(folder, dtype, None, device="cuda")
    assert {each.device.type for each in paged.model.parameters()} <= {"cuda", "meta"}
    logits = _logits(paged.model, paged.pager)
    paged.close()
    return logits


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("slots", [(2, 1), (3, 4), (7, 10)])
def test_logits_are_those_of_the_cpu_when_a_device_computes(
    ids_folder: Path, dtype: str, slots: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _logits(load_model(ids_folder, dtype))
    found = _logits_on_device(ids_folder, dtype, slots, monkeypatch)
    # Each of some layers and products may be off by one tolerance; routing weights are float32 in any model.
    for one, other in zip(expected, found, strict=True):
        assert relative_error(other, one) < 10 * TOLERANCES[torch.float32]
    whole = _logits_on_device(ids_folder, dtype, (NUM_PAGES, NUM_PAGES), monkeypatch)
    assert all(torch.equal(one, other) for one, other in zip(whole, found, strict=True)), "slots never show"


def test_answers_are_those_of_the_cpu_when_a_device_computes(ids_folder: Path) -> None:
    expected = LLM(ids_folder, dtype="float64").generate(PROMPTS, max_tokens=8)
    llm = LLM(ids_folder, dtype="float64", device="cuda", device_memory="1GiB")
    assert llm.generate(PROMPTS, max_tokens=8) == expected
    assert llm.stats()["device_budget_bytes"] == 2**30
    llm.close()


@pytest.fixture
def tier() -> Any:
    """Two host slots before a device."""
    tier = HostTier(Disk(cached=True, num_threads=1), Pool(LAYOUT, 2), DEVICE)
    yield tier
    tier.close()


def test_host_slots_are_pinned_until_the_tier_is_closed(tier: HostTier) -> None:
    slot = torch.from_numpy(tier._pool.record(1))
    assert slot.is_pinned()
    tier.close()
    assert not slot.is_pinned()


def test_copy_ends_before_kernels_that_were_launched_after_it_was_asked_for(
    tier: HostTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, device = write_pages(tmp_path, 1, 2), DevicePool(LAYOUT, 2, DEVICE)
    tier.read(pages[0][0], device.record(0)).wait()
    torch.cuda.synchronize(DEVICE)
    has_launched, begin = threading.Event(), CudaCopyStream.begin

    def hold(*arguments: Any) -> Callable[[], None]:
        assert has_launched.wait(20)
        return begin(*arguments)

    monkeypatch.setattr(CudaCopyStream, "begin", hold)
    arrival = tier.read(pages[0][1], device.record(1))
    torch.cuda._sleep(LONG_CYCLES)
    end = torch.cuda.current_stream(DEVICE).record_event()
    has_launched.set()
    arrival.wait()
    assert not end.query(), "the copy did not wait for what was launched later"
    assert holds(device.record(1).cpu().numpy(), 0, 1)


def test_slot_is_overwritten_after_kernels_that_read_it_when_they_are_late(tier: HostTier, tmp_path: Path) -> None:
    pages, device = write_pages(tmp_path, 1, 2), DevicePool(LAYOUT, 1, DEVICE)
    record = device.record(0)
    tier.read(pages[0][0], record).wait()
    torch.cuda._sleep(LONG_CYCLES)
    seen = record.clone()
    tier.read(pages[0][1], record).wait()
    assert holds(seen.cpu().numpy(), 0, 0)
    assert holds(record.cpu().numpy(), 0, 1)
