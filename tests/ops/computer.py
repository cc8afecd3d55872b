"""Marks that run a test with each implementation of the mixture."""

import pytest
import torch

from moesaic.ops.cpu.library import NONE, list_instruction_sets
from tests.ops.conftest import Computer


def _parameter(isa: str, dtype: torch.dtype, refusal: str | None) -> object:
    computer = Computer(isa, dtype)
    marks = [] if refusal is None else [pytest.mark.skip(reason=f"{isa}: {refusal}")]
    return pytest.param(computer, id=str(computer), marks=marks)


_COMPILED = [
    _parameter(each.name, dtype, each.refusal)
    for each in list_instruction_sets()
    for dtype in (torch.float32, torch.bfloat16)
]
_TORCH = [_parameter(NONE, dtype, None) for dtype in (torch.float32, torch.bfloat16)]
_TORCH_ALONE = [_parameter(NONE, dtype, None) for dtype in (torch.float64, torch.float16)]
each_computer = pytest.mark.parametrize("computer", [*_COMPILED, *_TORCH, *_TORCH_ALONE], indirect=True)
each_quantising = pytest.mark.parametrize("computer", [*_COMPILED, *_TORCH], indirect=True)
each_compiled = pytest.mark.parametrize("computer", _COMPILED, indirect=True)
