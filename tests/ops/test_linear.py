"""A few rows by a weight: near the oracle, whatever the sizes and the neighbours; torch's for all else."""

import ctypes

import pytest
import torch
from torch.nn import functional

from moesaic.ops import linear as linear_room
from moesaic.ops.cpu import description
from moesaic.ops.cpu.library import ISA_VARIABLE, NONE, list_instruction_sets
from moesaic.ops.linear import MOST_ROWS, linear

ISAS = [*(each.name for each in list_instruction_sets() if each.refusal is None), NONE]
# (rows, K, D) and the reason.
SIZES = {
    "one of each": (1, 1, 1),
    "whole tiles, two blocks of columns": (1, 128, 128),
    "a tail of everything": (3, 33, 65),
    "more than a panel": (17, 64, 31),
    "as many rows as there may be": (MOST_ROWS, 95, 33),
    "depth beyond a strip, columns short of a block": (2, 2050, 7),
}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have an instruction set compute, or torch."""
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("rows", "depth", "columns"), SIZES.values(), ids=SIZES)
def test_result_is_near_the_oracle_when_rows_are_few(rows: int, depth: int, columns: int) -> None:
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, depth), torch.randn(columns, depth) / depth**0.5, torch.randn(columns)
    x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    with torch.no_grad():
        found, shifted = linear(x, weight), linear(x, weight, bias)
    expected = x.double() @ weight.double().T
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), expected, rtol=8e-3, atol=8e-3)
    assert torch.allclose(shifted.double(), expected + bias.double(), rtol=1e-2, atol=2e-2)


def test_row_does_not_depend_on_others_when_our_kernels_compute(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 70).bfloat16(), torch.randn(40, 70).bfloat16()
    calls: list[int] = []
    real = linear_room.compiled.multiply
    monkeypatch.setattr(linear_room.compiled, "multiply", lambda *given: calls.append(1) or real(*given))
    with torch.no_grad():
        together = linear(x, weight)
        assert bool(calls) == (isa != NONE)
        for batch in range(2):
            for position in range(5):
                alone = linear(x[batch, position : position + 1], weight)
                assert isa == NONE or torch.equal(alone[0], together[batch, position])


@pytest.mark.parametrize("why", ["gradient", "float32", "many rows", "no rows"])
def test_torch_computes_when_the_kernels_are_not_made_for_it(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_room.compiled, "multiply", lambda *_: pytest.fail("not for this"))
    rows = {"many rows": MOST_ROWS + 1, "no rows": 0}.get(why, 2)
    dtype = torch.float32 if why == "float32" else torch.bfloat16
    x, weight = torch.randn(rows, 16).to(dtype), torch.randn(8, 16).to(dtype)
    with torch.set_grad_enabled(why == "gradient"):
        assert torch.equal(linear(x, weight), functional.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [each.number for each in list_instruction_sets() if each.refusal is None])
def test_rows_of_each_expert_meet_its_matrix_when_a_product_is_grouped(number: int, dtype: torch.dtype) -> None:
    counts_E = torch.tensor([3, 0, 33, 17])
    rows, matrices = torch.randn(53, 70).to(dtype), torch.randn(4, 65, 70).to(dtype)
    out = torch.empty(53, 65, dtype=dtype)
    sizes = (number, description.DTYPES[dtype], 2, 53, 53, 65, 70, 4)
    pointers = {"counts": counts_E.data_ptr(), "hidden": rows.data_ptr(), "down": matrices.data_ptr()}
    mixture = description.Mixture(*sizes, **pointers)
    assert description.open_library().moesaic_mixture_forward(ctypes.byref(mixture), out.data_ptr()) == 0
    starts = [0, 3, 3, 36, 53]
    for expert in range(4):
        own = slice(starts[expert], starts[expert + 1])
        expected = rows[own].double() @ matrices[expert].double().T
        limit = 8e-3 if dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(out[own].double(), expected, rtol=limit, atol=10 * limit)
