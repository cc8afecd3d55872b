"""A linear map of 8 bits: the oracle's bits on every backend, whatever the sizes and neighbours; what is refused."""

import pytest
import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops import quantised_linear as room
from moesaic.ops.cpu.library import ISA_VARIABLE, NONE, list_instruction_sets
from moesaic.ops.quant import MAX_DEPTH, QuantisedMatrix, integer_parts, matrix_to_noise_db, quantise_matrix
from moesaic.ops.quantised_linear import quantised_linear
from moesaic.ops.reference import quantised_linear as oracle

RUNNABLE = [each.name for each in list_instruction_sets() if each.refusal is None]
# (N, L, C) and the reason.
SIZES = {
    "one of each": (1, 1, 1),
    "whole strips and blocks": (1, 128, 64),
    "a tail of everything": (3, 33, 65),
    "more than a panel": (17, 64, 31),
    "more than a pair of panels": (33, 130, 70),
    "many more inputs than outputs": (2, 600, 3),
    "no rows": (0, 64, 32),
}


@pytest.fixture(params=[*RUNNABLE, NONE])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have an instruction set compute, or torch."""
    monkeypatch.setenv(ISA_VARIABLE, request.param)
    return str(request.param)


def _draw(num_rows: int, depth: int, channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    weight = torch.randn(channels, depth, generator=generator) / depth**0.5
    return torch.randn(num_rows, depth, generator=generator).to(dtype), weight


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_rows", "depth", "channels"), SIZES.values(), ids=SIZES)
def test_result_is_the_oracles_to_the_bit_when_sizes_are(
    num_rows: int, depth: int, channels: int, dtype: torch.dtype
) -> None:
    rows, weight = _draw(num_rows, depth, channels, dtype)
    matrix = quantise_matrix(weight)
    found = quantised_linear(rows, matrix)
    assert found.dtype == dtype
    if num_rows == 0:
        assert found.shape == (0, channels)
        return
    assert torch.equal(found, oracle.quantised_linear(rows, list(integer_parts(matrix))))


@pytest.mark.usefixtures("isa")
def test_row_does_not_depend_on_others_when_there_are_many() -> None:
    rows, weight = _draw(1100, 70, 40)
    matrix = quantise_matrix(weight)
    together = quantised_linear(rows, matrix)
    for first, count in ((0, 1), (511, 2), (700, 33), (1099, 1)):
        alone = quantised_linear(rows[first : first + count], matrix)
        assert torch.equal(alone, together[first : first + count])


@pytest.mark.skipif(not RUNNABLE, reason="this installation has no compiled kernels")
def test_compiled_kernels_and_torch_agree_to_the_bit_when_rows_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, weight = _draw(20_000, 33, 5)
    matrix = quantise_matrix(weight)
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    compiled = quantised_linear(rows, matrix)
    monkeypatch.setenv(ISA_VARIABLE, NONE)
    assert torch.equal(quantised_linear(rows, matrix), compiled)


@pytest.mark.usefixtures("isa")
def test_leading_dimensions_and_bias_are_kept_when_given() -> None:
    rows, weight = _draw(6, 40, 20)
    matrix, bias = quantise_matrix(weight), torch.randn(20)
    flat = quantised_linear(rows, matrix)
    assert torch.equal(quantised_linear(rows.view(2, 3, 40), matrix, bias), (flat + bias).view(2, 3, 20))
    assert torch.equal(quantised_linear(rows[0], matrix), flat[0])
    strided = torch.empty(40, 6).t().copy_(rows)
    assert torch.equal(quantised_linear(strided, matrix), flat)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_alone_is_nan_when_it_holds(value: float) -> None:
    rows, weight = _draw(20, 70, 40)
    matrix = quantise_matrix(weight)
    clean = quantised_linear(rows, matrix)
    rows[7, 3] = value
    found = quantised_linear(rows, matrix)
    others = torch.arange(20) != 7
    assert found[7].isnan().all()
    assert torch.equal(found[others], clean[others])
    assert not quantised_linear(torch.zeros(1, 70), matrix).any()


def test_compiled_kernels_compute_when_there_are_some(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = room.compiled.multiply
    monkeypatch.setattr(room.compiled, "multiply", lambda *given: calls.append(1) or real(*given))
    rows, weight = _draw(2, 16, 8)
    quantised_linear(rows, quantise_matrix(weight))
    assert bool(calls) == (isa != NONE)


def test_channels_are_rounded_apart_when_they_are_more_than_go_together() -> None:
    weight = torch.randn(4100, 40)
    matrix = quantise_matrix(weight)
    parts = list(integer_parts(matrix))
    assert [len(part.scales) for part in parts] == [2048, 2048, 4]
    restored = torch.cat([part.integers * part.scales[:, None] for part in parts])
    expected = (weight / (weight.abs().amax(1, keepdim=True) / 127)).round() * (weight.abs().amax(1) / 127)[:, None]
    assert torch.equal(restored, expected)
    signal, noise = weight.double().square().sum(), (restored.double() - weight).square().sum()
    assert matrix_to_noise_db(weight, matrix) == pytest.approx(10 * torch.log10(signal / noise).item())
    assert matrix_to_noise_db(torch.zeros(3, 4), quantise_matrix(torch.zeros(3, 4))) == torch.inf


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (torch.ones(3), r"matrix has the shape \(3,\)"),
        (torch.ones(3, 4).int(), "matrix holds torch.int32"),
        (torch.ones(0, 4), r"matrix has the shape \(0, 4\)"),
        (torch.ones(3, 0), r"matrix has the shape \(3, 0\)"),
        (torch.ones(1, MAX_DEPTH + 1), r"matrix has the shape \(1, 131009\)"),
        (torch.full((1, 4), torch.nan), "matrix holds NaN or infinity"),
    ],
)
def test_weight_is_refused_when_it_cannot_be_rounded(weight: Tensor, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        quantise_matrix(weight)


def test_arguments_are_refused_when_they_are_wrong() -> None:
    matrix = quantise_matrix(torch.ones(8, 6))
    x = torch.ones(2, 6)

    def refused(x: Tensor, matrix: QuantisedMatrix, text: str) -> None:
        with pytest.raises(UnsupportedError, match=text):
            quantised_linear(x, matrix)

    refused(x.double(), matrix, "x holds torch.float64")
    refused(torch.ones(2, 7), matrix, r"x has the shape \(2, 7\)")
    refused(x.to("meta"), matrix, "x is on meta")
    refused(x, QuantisedMatrix(matrix.blocks[:1], matrix.scales, 8, 6), r"matrix.blocks has the shape \(1, 1, 32, 64\)")
    refused(x, QuantisedMatrix(matrix.blocks.float(), matrix.scales, 8, 6), "matrix.blocks holds float32")
    refused(x, QuantisedMatrix(matrix.blocks, matrix.scales.half(), 8, 6), "matrix.scales holds float16")
    refused(x, QuantisedMatrix(matrix.blocks, matrix.scales[0], 8, 6), r"matrix.scales has the shape \(32,\)")
    refused(x.requires_grad_(), matrix, "maps of 8 bits have no gradients")
