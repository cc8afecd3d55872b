"""The candidates do equal work on one memory; the dense ones as much as the experts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moesaic.bench.candidate import CANDIDATES
from moesaic.bench.compare import check_equal
from moesaic.bench.shape import Shape
from moesaic.bench.workload import ROUTINGS, Inputs, Layer, build_layers, count_cold_layers, draw_inputs

SHAPE = Shape(48, 32, 16, 8, 3)
LOW_BIT = [name for name in CANDIDATES if "int" in name]
FLOATS = [name for name in CANDIDATES if name not in LOW_BIT]


@pytest.fixture
def layer() -> Layer:
    return build_layers(SHAPE, torch.float32, 1)[0]


@pytest.fixture(params=ROUTINGS)
def inputs(request: pytest.FixtureRequest) -> Inputs:
    return draw_inputs(SHAPE, torch.float32, request.param, seed=0)


def _expected(layer: Layer, inputs: Inputs) -> torch.Tensor:
    rows = []
    for hidden_D, ids_K, weights_K in zip(inputs.hidden_TD, inputs.expert_ids_TK, inputs.weights_TK, strict=True):
        row_D = torch.zeros_like(hidden_D)
        for expert, weight in zip(ids_K.tolist(), weights_K, strict=True):
            gate_F, up_F = (layer.gate_up[expert] @ hidden_D).chunk(2)
            row_D = row_D + weight * (layer.down[expert] @ (gate_F * gate_F.sigmoid() * up_F))
        rows.append(row_D)
    return torch.stack(rows)


@pytest.mark.parametrize("name", [name for name in FLOATS if not name.startswith("dense")])
def test_mixture_is_the_written_out_sum_when_computed_one_by_one(name: str, layer: Layer, inputs: Inputs) -> None:
    found = CANDIDATES[name].prepare(layer, SHAPE).forward(inputs)
    torch.testing.assert_close(found, _expected(layer, inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LOW_BIT)
@torch.no_grad()
def test_low_bit_mixture_is_within_its_limit_when_computed_in_bfloat16(name: str) -> None:
    bfloat16_layer = build_layers(SHAPE, torch.bfloat16, 1)[0]
    inputs = draw_inputs(SHAPE, torch.bfloat16, "uniform", seed=0)
    expected = CANDIDATES["moesaic"].prepare(bfloat16_layer, SHAPE).forward(inputs)
    check_equal(name, CANDIDATES[name].prepare(bfloat16_layer, SHAPE).forward(inputs), expected, CANDIDATES[name].limit)


def test_low_bit_candidates_take_part_when_a_figure_of_theirs_is_asked_for() -> None:
    for name in LOW_BIT:
        taken = [tokens for tokens in (1, 4, 1024) if CANDIDATES[name].takes(tokens, torch.bfloat16)]
        assert taken == [1, 1024]
        assert not CANDIDATES[name].takes(1, torch.float32)


def test_low_bit_weights_stand_apart_in_memory_when_layers_share_their_values() -> None:
    first, second = build_layers(SHAPE, torch.float32, 2)
    assert first.quantised(8) is first.quantised(8)
    assert torch.equal(first.quantised(8).down, second.quantised(8).down)
    assert first.quantised(8).down.data_ptr() != second.quantised(8).down.data_ptr()


@pytest.mark.parametrize("name", FLOATS)
def test_weights_are_no_copy_when_a_candidate_is_prepared(name: str, layer: Layer) -> None:
    pointers = {layer.gate_up.untyped_storage().data_ptr(), layer.down.untyped_storage().data_ptr()}
    prepared = CANDIDATES[name].prepare(layer, SHAPE)
    assert {each.untyped_storage().data_ptr() for each in prepared.parameters} == pointers


def test_dense_mlps_do_the_products_of_the_experts_when_training(layer: Layer) -> None:
    inputs, flops = draw_inputs(SHAPE, torch.float32, "uniform", seed=0), {}
    for name in ("moesaic", "dense", "dense_split"):
        with FlopCounterMode(display=False) as counter:
            CANDIDATES[name].prepare(layer, SHAPE).backward(inputs)
        flops[name] = counter.get_total_flops()
    # Our own kernels are no torch operators, which it could count.
    expected = 3 * 2 * SHAPE.tokens * SHAPE.chosen * SHAPE.expert_size
    assert flops["dense"] == flops["dense_split"] == expected
    assert flops["moesaic"] in (0, expected)


def test_dense_mlps_agree_with_each_other_when_given_the_same_memory(layer: Layer, inputs: Inputs) -> None:
    results = [CANDIDATES[name].prepare(layer, SHAPE).forward(inputs) for name in ("dense", "dense_split")]
    torch.testing.assert_close(*results)


def test_experts_of_a_token_are_distinct_and_weights_sum_to_one_when_drawn(inputs: Inputs) -> None:
    assert inputs.expert_ids_TK.shape == (48, 3)
    assert all(len(set(row)) == 3 for row in inputs.expert_ids_TK.tolist())
    torch.testing.assert_close(inputs.weights_TK.sum(1), torch.ones(48, dtype=torch.float32))


def test_load_is_even_or_falls_off_when_the_routing_is_uniform_or_zipf() -> None:
    shape = Shape(4096, 8, 8, 16, 1)
    shares = {
        name: draw_inputs(shape, torch.float32, name, seed=1).expert_ids_TK.flatten().bincount(minlength=16) / 4096
        for name in ROUTINGS
    }
    assert shares["uniform"].max() < 0.08
    # The first of sixteen ranks has 1 over the sum of r**-1.2.
    expected = 1 / sum(rank**-1.2 for rank in range(1, 17))
    assert float(shares["zipf"].max()) == pytest.approx(expected, abs=0.03)


def test_layers_differ_and_stand_apart_in_memory_when_several_are_built() -> None:
    first, second = build_layers(SHAPE, torch.float32, 2)
    assert not torch.equal(first.gate_up, second.gate_up)
    assert first.down.data_ptr() != second.down.data_ptr()
    assert count_cold_layers(Shape(1, 1024, 512, 32, 4), torch.bfloat16) == 43
