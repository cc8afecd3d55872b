"""The implementations of the mixture: each instruction set that runs here, and torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from moesaic.ops.cpu import description
from moesaic.ops.cpu.library import ISA_VARIABLE, NONE, list_instruction_sets


@dataclass(frozen=True)
class Computer:
    """Who computes, in which dtype: an instruction set of the compiled kernels, or 'none' for torch."""

    isa: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.isa}-{str(self.dtype).removeprefix('torch.')}"


@pytest.fixture
def computer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Computer]:
    """Have one of them compute; after the test, check that it was this one and no other."""
    chosen: Computer = request.param
    monkeypatch.setenv(ISA_VARIABLE, chosen.isa)
    seen: set[int] = set()
    _watch(monkeypatch, seen)
    yield chosen
    names = {each.name for each in list_instruction_sets() if each.number in seen}
    assert names == ({chosen.isa} - {NONE})


def _watch(monkeypatch: pytest.MonkeyPatch, seen: set[int]) -> None:
    """Collect the numbers of the instruction sets that the kernels are called for."""
    describe = description.Described.__init__

    def watched(self: description.Described, *arguments: Any) -> None:
        describe(self, *arguments)
        seen.add(self.mixture.isa)

    monkeypatch.setattr(description.Described, "__init__", watched)
