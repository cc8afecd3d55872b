"""The mixture of low-bit experts: integers to the bit on every backend, then values, rows apart, bad input.

A token whose gates are all large passes them through silu unchanged, so with one expert of weight 1 there is nothing
that backends could round differently, and the results must be equal bit for bit.
"""

import pytest
import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.cpu.library import ISA_VARIABLE, NONE, list_instruction_sets
from moesaic.ops.cpu.mixture import list_routing
from moesaic.ops.mixture import mix_experts
from moesaic.ops.permutation import Permutation
from moesaic.ops.permute import as_permutation, group_by_expert
from moesaic.ops.quant import QuantisedExperts, dequantise, quantise_experts
from moesaic.ops.quantised_mixture import mix_experts_quantised
from moesaic.ops.reference import quantised_mixture as oracle
from moesaic.testing.tolerance import is_close

RUNNABLE = [each.name for each in list_instruction_sets() if each.refusal is None]
each_width = pytest.mark.parametrize("bits", [8, 4])
# Of the result against that of the original weights, both gaussian.
LEAST_DB = {8: 33.0, 4: 14.0}

# (T, D, F, E, K): why.
SHAPES = {
    "one token": (1, 64, 64, 4, 2),
    "widths no multiple of a strip": (5, 40, 70, 3, 2),
    "widths below a strip, prime experts, K=E": (3, 3, 5, 5, 5),
    "most experts empty": (2, 130, 33, 31, 1),
    "more rows than a pair of panels": (75, 96, 48, 2, 1),
    "K=E=1: one expert takes all": (33, 64, 32, 1, 1),
    "no tokens": (0, 64, 64, 4, 2),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())

Shape = tuple[int, int, int, int, int]


@pytest.fixture
def _backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, backend)


def _route(num_tokens: int, num_experts: int, chosen: int) -> Permutation:
    expert_ids = [torch.randperm(num_experts)[:chosen] for _ in range(num_tokens)]
    expert_ids_N = torch.cat(expert_ids) if expert_ids else torch.empty(0, dtype=torch.int64)
    return group_by_expert(torch.arange(num_tokens).repeat_interleave(chosen), expert_ids_N, num_tokens, num_experts)


def _build(shape: Shape, bits: int) -> tuple[QuantisedExperts, Tensor, Tensor]:
    _, D, F, E, _ = shape
    gate_up, down = torch.randn(E, 2 * F, D) / D**0.5, torch.randn(E, D, F) / F**0.5
    return quantise_experts(gate_up, down, bits), gate_up, down


def _draw(shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Permutation]:
    T, D, _, E, K = shape
    return torch.randn(T, D).to(dtype), torch.rand(T * K), _route(T, E, K)


@each_width
@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [*RUNNABLE, NONE])
@pytest.mark.usefixtures("_backend")
def test_result_equals_the_oracle_when_the_shape_is(bits: int, shape: Shape, dtype: torch.dtype) -> None:
    experts, *_ = _build(shape, bits)
    hidden_TD, weights_N, permutation = _draw(shape, dtype)
    expected = oracle.mix_experts_quantised(hidden_TD, weights_N, experts, permutation)
    found = mix_experts_quantised(hidden_TD, weights_N, experts, permutation)
    assert found.dtype == dtype
    # silu's last bits may move a value to the next of 127 steps.
    limit = 4e-3 if dtype == torch.float32 else 2e-2
    assert (
        (found - expected).abs().max() <= limit * expected.abs().max()
        if found.numel()
        else found.shape == (0, shape[1])
    )


@each_width
@pytest.mark.parametrize("backend", [*RUNNABLE, NONE])
@pytest.mark.usefixtures("_backend")
def test_result_equals_the_oracle_to_the_bit_when_gates_are_open(bits: int) -> None:
    T, D, F = 37, 200, 72
    gate_up, down = torch.randn(2, 2 * F, D), torch.randn(2, D, F)
    hidden_TD = torch.randn(T, D)
    gate_up[:, :F, 0], hidden_TD[:, 0] = 20.0, 20.0
    experts, permutation = quantise_experts(gate_up, down, bits), _route(T, 2, 1)
    found = mix_experts_quantised(hidden_TD, torch.ones(T), experts, permutation)
    assert torch.equal(found, oracle.mix_experts_quantised(hidden_TD, torch.ones(T), experts, permutation))


@each_width
@pytest.mark.parametrize("backend", [*RUNNABLE, NONE])
@pytest.mark.usefixtures("_backend")
def test_a_row_is_the_same_to_the_bit_when_computed_alone(bits: int) -> None:
    shape = (40, 96, 80, 4, 2)
    experts, *_ = _build(shape, bits)
    hidden_TD = torch.randn(40, 96)
    expert_ids_TK = torch.stack([torch.randperm(4)[:2] for _ in range(40)])
    weights_TK = torch.rand(40, 2)
    together = group_by_expert(torch.arange(40).repeat_interleave(2), expert_ids_TK.flatten(), 40, 4)
    found = mix_experts_quantised(hidden_TD, weights_TK.flatten(), experts, together)
    for row in (0, 17, 39):
        alone = group_by_expert(torch.tensor([0, 0]), expert_ids_TK[row], 1, 4)
        assert torch.equal(
            mix_experts_quantised(hidden_TD[row : row + 1], weights_TK[row], experts, alone)[0], found[row]
        )


@each_width
@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.usefixtures("_backend")
def test_bits_are_the_same_when_threads_are_one_or_more(bits: int) -> None:
    shape, before = (50, 128, 96, 5, 3), torch.get_num_threads()
    experts, *_ = _build(shape, bits)
    inputs = _draw(shape, torch.bfloat16)
    results = []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(mix_experts_quantised(*inputs[:2], experts, inputs[2]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, results[0]) for each in results)


@each_width
def test_error_stays_below_its_bound_when_compared_with_the_original_weights(bits: int) -> None:
    shape = (64, 256, 128, 4, 2)
    experts, gate_up, down = _build(shape, bits)
    hidden_TD, weights_N, permutation = _draw(shape)
    expected = mix_experts(hidden_TD, weights_N, gate_up, down, permutation)
    noise = mix_experts_quantised(hidden_TD, weights_N, experts, permutation) - expected
    assert 10 * torch.log10(expected.square().sum() / noise.square().sum()) > LEAST_DB[bits]


def test_tokens_cost_less_than_the_weights_when_bits_are_four() -> None:
    shape = (64, 256, 128, 4, 2)
    experts, *_ = _build(shape, 4)
    hidden_TD, weights_N, permutation = _draw(shape)
    expected = mix_experts(hidden_TD, weights_N, *dequantise(experts), permutation)
    noise = mix_experts_quantised(hidden_TD, weights_N, experts, permutation) - expected
    assert 10 * torch.log10(expected.square().sum() / noise.square().sum()) > 34.0


@each_width
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", [*RUNNABLE, NONE])
@pytest.mark.usefixtures("_backend")
def test_a_row_alone_is_nan_when_it_holds(bits: int, value: float, dtype: torch.dtype) -> None:
    shape = (20, 70, 40, 2, 1)
    experts, *_ = _build(shape, bits)
    hidden_TD, weights_N, permutation = _draw(shape, dtype)
    clean = mix_experts_quantised(hidden_TD, weights_N, experts, permutation)
    hidden_TD[7, 3] = value
    found = mix_experts_quantised(hidden_TD, weights_N, experts, permutation)
    assert found[7].isnan().all()
    others = torch.arange(20) != 7
    assert torch.equal(found[others], clean[others])


@each_width
@pytest.mark.parametrize("backend", [*RUNNABLE, NONE])
@pytest.mark.usefixtures("_backend")
def test_result_is_zero_when_tokens_are_zero_or_denormal(bits: int) -> None:
    shape = (3, 70, 40, 2, 1)
    experts, *_ = _build(shape, bits)
    _, weights_N, permutation = _draw(shape)
    assert not mix_experts_quantised(torch.zeros(3, 70), weights_N, experts, permutation).any()
    assert not mix_experts_quantised(torch.full((3, 70), 1e-42), weights_N, experts, permutation).any()


def test_result_is_that_of_contiguous_tensors_when_they_are_strided() -> None:
    shape = (6, 64, 32, 3, 2)
    experts, *_ = _build(shape, 8)
    hidden_TD, weights_N, permutation = _draw(shape)
    strided = torch.empty(64, 6).t().copy_(hidden_TD)
    expected = mix_experts_quantised(hidden_TD, weights_N, experts, permutation)
    assert torch.equal(mix_experts_quantised(strided, weights_N, experts, permutation), expected)
    assert is_close(mix_experts_quantised(hidden_TD, weights_N.double(), experts, permutation), expected)


@each_width
def test_result_keeps_its_bits_when_expert_ids_are_given(bits: int) -> None:
    shape = (4, 64, 32, 3, 2)
    experts, *_ = _build(shape, bits)
    random = torch.Generator().manual_seed(0)
    ids_TK = torch.rand(4, 3, generator=random).topk(2).indices
    hidden_TD, weights_TK = torch.randn(4, 64, generator=random), torch.rand(4, 2, generator=random)
    expected = mix_experts_quantised(hidden_TD, weights_TK.flatten(), experts, as_permutation(ids_TK, 3))
    assert torch.equal(mix_experts_quantised(hidden_TD, weights_TK, experts, ids_TK), expected)


@each_width
@pytest.mark.skipif(not RUNNABLE, reason="this installation has no compiled kernels")
def test_operator_passes_torchs_checks_when_quantised(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOESAIC_ISA", raising=False)  # the kernels themselves are checked
    shape = (4, 64, 32, 3, 2)
    experts, *_ = _build(shape, bits)
    hidden_TD, weights_N, permutation = _draw(shape)
    matrices = experts.gate_up, experts.gate_up_scales, experts.down, experts.down_scales
    torch.library.opcheck(
        torch.ops.moesaic.mixture_quantised.default,
        (hidden_TD, weights_N, *matrices, list_routing(permutation), experts.hidden_width),
    )


def _refused(hidden_TD: Tensor, weights_N: Tensor, permutation: Permutation, text: str) -> None:
    experts = quantise_experts(torch.ones(2, 8, 6), torch.ones(2, 6, 4), 8)
    with pytest.raises(UnsupportedError, match=text):
        mix_experts_quantised(hidden_TD, weights_N, experts, permutation)


def test_arguments_are_refused_when_they_are_wrong() -> None:
    permutation = _route(3, 2, 1)
    hidden_TD, weights_N = torch.ones(3, 6), torch.ones(3)
    _refused(hidden_TD.double(), weights_N, permutation, "hidden_TD holds torch.float64")
    _refused(torch.ones(3, 7), weights_N, permutation, r"hidden_TD has the shape \(3, 7\)")
    _refused(hidden_TD.to("meta"), weights_N, permutation, "hidden_TD is on meta")
    _refused(hidden_TD, weights_N.int(), permutation, "weights holds torch.int32")
    _refused(hidden_TD, torch.ones(4), permutation, r"weights has the shape \(4,\)")
    _refused(torch.ones(4, 6), weights_N, permutation, r"starts_T has the shape \(3,\)")
    _refused(hidden_TD, weights_N, _route(3, 3, 1), r"counts_E has the shape \(3,\)")
    _refused(hidden_TD.requires_grad_(), weights_N, permutation, "quantised experts have no gradients")


@pytest.mark.skipif(not RUNNABLE, reason="this installation has no compiled kernels")
def test_routing_is_refused_when_it_points_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOESAIC_ISA", raising=False)  # torch's own indexing refuses it otherwise
    wrong = _route(3, 2, 1)
    wrong.token_ids_N[0] = 3
    _refused(torch.ones(3, 6), torch.ones(3), wrong, "does not fit the rows")
