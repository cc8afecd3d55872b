"""Pre-gated models: what each router reads, and that the pages of the next mixture are known exactly, a layer early."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from moesaic.models.model import LanguageModel
from moesaic.nn.decoder import DecoderOutput
from moesaic.nn.moe.balance import balance_loss, z_loss
from moesaic.nn.moe.dispatch import LocalDispatcher
from moesaic.nn.moe.experts import Experts
from moesaic.nn.moe.paged import PagedDispatcher
from moesaic.nn.moe.router import ROUTERS, Routing
from moesaic.ops.attention import build_mask
from moesaic.ops.rope import build_frequencies, rotation
from moesaic.testing.tiny import tiny_model
from moesaic.testing.tolerance import is_close
from tests.nn.moe.layer_oracle import mix_pairs

VARIANTS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax in groups": {"num_experts": 6, "n_group": 3, "topk_group": 2},
    "softmax with capacity": {"eval_capacity_factor": 0.5},
    "sigmoid": {"router": "sigmoid", "routed_scaling_factor": 2.5},
    "switch": {"router": "switch", "num_experts_per_tok": 0, "eval_capacity_factor": 1.0},
    "gshard": {"router": "gshard", "num_experts_per_tok": 0},
    "expert choice": {"router": "expert_choice"},
    "shared expert": {"shared_expert_intermediate_size": 4, "shared_expert_gate": True},
    "dense layers in between": {"num_hidden_layers": 5, "mlp_only_layers": [1, 2]},
    "dense layers at the ends": {"num_hidden_layers": 5, "mlp_only_layers": [0, 4]},
    "every second layer": {"num_hidden_layers": 5, "decoder_sparse_step": 2},
}
# A comparison of gradients that fails goes on number by number.
FEWEST = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 6,
    "moe_intermediate_size": 3,
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def _model(**changes: Any) -> LanguageModel:
    return tiny_model(**{"num_hidden_layers": 3, **changes, "pregated": True})


def _ids(batch: int, length: int) -> Tensor:
    return torch.randint(61, (batch, length))


def _decode_slowly(model: LanguageModel, ids_BS: Tensor, valid_BS: Tensor) -> tuple[Tensor, dict[int, Routing]]:
    """Return the decoder's hidden states and each mixture's routing, layer after layer, one routed pair at a time."""
    config, decoder = model.config, model.decoder
    positions_BS = torch.arange(ids_BS.shape[1]).expand_as(ids_BS)
    frequencies, scale = build_frequencies(config.head_channels, config.rope_theta, config.rope_scaling)
    rotary = rotation(positions_BS, frequencies, scale, torch.float32)
    mask = build_mask(positions_BS, ids_BS.shape[1])

    hidden_BSD, routings, inputs = decoder.embedding(ids_BS), dict[int, Routing](), list[Tensor]()
    for index, layer in enumerate(decoder.layers):
        hidden_BSD = hidden_BSD + layer.attention(layer.attention_norm(hidden_BSD), rotary, mask, positions_BS, None)
        normed_BSD = layer.mlp_norm(hidden_BSD)
        if layer.mlp is not None:
            hidden_BSD = hidden_BSD + layer.mlp(normed_BSD)
            continue
        inputs.append(normed_BSD[valid_BS])
        routings[index] = layer.moe.router(inputs[max(0, len(inputs) - 2)])
        hidden_BSD[valid_BS] += mix_pairs(layer.moe, inputs[-1], routings[index])
    return decoder.norm(hidden_BSD), routings


@torch.no_grad()
@each_variant
def test_each_mixture_routes_by_what_the_one_before_read_when_pregated(changes: dict[str, Any]) -> None:
    model, ids_BS = _model(**changes), _ids(2, 6)
    valid_BS = torch.arange(6) < torch.tensor([[6], [4]])
    expected_BSD, routings = _decode_slowly(model, ids_BS, valid_BS)
    found = model.decode(ids_BS, valid_BS=valid_BS)

    assert is_close(found.hidden_BSD[valid_BS], expected_BSD[valid_BS])
    assert list(found.loads) == list(routings)
    num_experts = model.config.num_experts
    for layer, routing in routings.items():
        counts_E = torch.bincount(routing.chosen_expert_ids, minlength=num_experts)
        assert torch.equal(found.loads[layer].tokens_per_expert_E, counts_E)
    balance = torch.stack([balance_loss(routing, num_experts) for routing in routings.values()]).mean()
    assert is_close(found.losses["balance_loss"], balance)
    assert is_close(found.losses["z_loss"], torch.stack([z_loss(each.logits_TE) for each in routings.values()]).mean())


def test_every_router_is_among_the_variants_when_the_table_grows() -> None:
    assert {changes.get("router", "softmax") for changes in VARIANTS.values()} == set(ROUTERS)


@each_variant
def test_gradients_equal_finite_differences_when_pregated(changes: dict[str, Any]) -> None:
    decoder, ids_BS = _model(**FEWEST, **changes).double().decoder, torch.randint(11, (1, 4))
    shapes = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def run(vector: Tensor) -> tuple[Tensor, ...]:
        parameters = {
            name: part.view(shape) for (name, shape), part in zip(shapes.items(), vector.split(sizes), strict=True)
        }
        out: DecoderOutput = functional_call(decoder, parameters, (ids_BS,))
        return out.hidden_BSD, out.losses["balance_loss"], out.losses["z_loss"]

    vector = torch.nn.utils.parameters_to_vector(decoder.parameters()).detach().requires_grad_()
    assert torch.autograd.gradcheck(run, vector, fast_mode=True)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"num_hidden_layers": 2, "mlp_only_layers": [0]}, {"num_hidden_layers": 1}])
def test_option_changes_nothing_when_there_is_one_mixture(changes: dict[str, Any]) -> None:
    ids_BS = _ids(2, 5)
    plain, pregated = tiny_model(**changes), tiny_model(**changes, pregated=True)
    assert torch.equal(plain(ids_BS), pregated(ids_BS))


class RecordingDispatcher:
    """Mixes as the local one does, and writes down what it is told and asked."""

    def __init__(self, layer: int, events: list[tuple[str, int, Routing]]) -> None:
        self._layer, self._events, self._local = layer, events, LocalDispatcher()

    def expect(self, routing: Routing) -> None:
        self._events.append(("expect", self._layer, routing))

    def mix(self, hidden_TD: Tensor, routing: Routing, experts: Experts) -> Tensor:
        self._events.append(("mix", self._layer, routing))
        return self._local.mix(hidden_TD, routing, experts)


def _record(model: LanguageModel) -> list[tuple[str, int, Routing]]:
    events: list[tuple[str, int, Routing]] = []
    for layer, moe in model.moe_layers().items():
        moe.dispatcher = RecordingDispatcher(layer, events)
    model.decode(_ids(2, 3))
    return events


@each_variant
def test_next_mixture_is_expected_just_before_a_mixture_is_computed_when_pregated(changes: dict[str, Any]) -> None:
    model = _model(**changes)
    events = _record(model)
    layers = list(model.moe_layers())
    order = [step for layer, after in pairwise(layers) for step in (("expect", after), ("mix", layer))]
    assert [(kind, layer) for kind, layer, _ in events] == [*order, ("mix", layers[-1])]
    # Full recall: what is expected is what is then mixed, weights and all.
    expected = {layer: routing for kind, layer, routing in events if kind == "expect"}
    mixed = {layer: routing for kind, layer, routing in events if kind == "mix"}
    assert all(mixed[layer] is expected[layer] for layer in layers[1:])


def test_nothing_is_expected_when_a_model_is_not_pregated() -> None:
    assert {kind for kind, _, _ in _record(tiny_model())} == {"mix"}


class ResidentPager:
    """Every page has its slot; it writes down what it is told and asked."""

    def __init__(self, model: LanguageModel) -> None:
        experts = {layer: moe.experts for layer, moe in model.moe_layers().items()}
        fields = {name: torch.cat([getattr(each, name) for each in experts.values()]) for name in ("gate_up", "down")}
        self.pool = SimpleNamespace(fields=fields)
        self.step_lengths: list[int] = []
        self.events: list[tuple[str, int, list[int]]] = []
        self._layers, self._num_experts = list(experts), model.config.num_experts

    def num_experts(self, layer: int) -> int:
        return self._num_experts

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        self.events.append(("expect", layer, list(experts)))

    def waves(self, layer: int, experts: Sequence[int], recent: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        self.events.append(("read", layer, list(experts)))
        yield torch.arange(self._num_experts) + self._num_experts * self._layers.index(layer)


@torch.inference_mode()
@each_variant
def test_pager_is_told_just_the_pages_that_are_then_read_when_pregated(changes: dict[str, Any]) -> None:
    model, ids_BS = _model(**changes), _ids(2, 5)
    cache, whole = model.new_cache(2, 6), model.new_cache(2, 6)
    expected = [model.decode(piece, cache=whole).hidden_BSD for piece in ids_BS.split([4, 1], dim=1)]

    pager = ResidentPager(model)
    for layer, moe in model.moe_layers().items():
        moe.dispatcher = PagedDispatcher(pager, layer)  # type: ignore[arg-type]
    for piece, hidden_BSD in zip(ids_BS.split([4, 1], dim=1), expected, strict=True):
        pager.events.clear()
        pager.step_lengths = [piece.shape[1]] * 2
        assert torch.equal(model.decode(piece, cache=cache).hidden_BSD, hidden_BSD)
        told = [(layer, experts) for kind, layer, experts in pager.events if kind == "expect"]
        read = [(layer, experts) for kind, layer, experts in pager.events if kind == "read"]
        assert told == read[1:]
        assert pager.events[0][0] == "expect"
