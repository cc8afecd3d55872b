"""Experts modules one by one: every class of the installed transformers, drawn routings, each reason to fall back."""

import contextlib
import logging
import sys

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from moesaic.errors import UnsupportedError
from moesaic.integrations import transformers as plugin
from moesaic.integrations.transformers import NAME, explain, register
from moesaic.testing.tolerance import is_close
from tests.integrations.experts import build_experts, call, draw_routing, experts_classes, gradients

GATE, BIAS = "it applies its gate in a way of its own", "its experts have biases"
# The classes that are not of our kind, as far as this release of transformers; each other one of it is ours.
LAST_READ = (5, 24)
REASONS = {
    "AriaExperts": "its weights are stored transposed",
    "BeamExperts": GATE,
    "DeepseekV4Experts": GATE,
    "Glm5NextTextExperts": GATE,
    "GptOssExperts": BIAS,
    "HYV4Experts": GATE,
    "HYV4VLExperts": GATE,
    "Inkling2Experts": GATE,
    "Inkling2LoopExperts": GATE,
    "MiniMaxM3VLExperts": GATE,
    "MuseSparkExperts": "a norm follows each of its experts",
    "NemotronHExperts": "its experts have no gate",
    "OpenAIPrivacyFilterExperts": BIAS,
}
INSTALLED = tuple(map(int, transformers.__version__.split(".")[:2]))


def _reason(experts: nn.Module) -> str:
    return explain(experts)[""]


# Widths of 8 and 8 go to transformers' grouped products, those of 8 and 6 to its batched ones.
@pytest.mark.parametrize("intermediate", [8, 6])
@pytest.mark.parametrize("kind", experts_classes().values(), ids=experts_classes())
def test_output_and_gradients_equal_eager_when_the_class_is(kind: type[nn.Module], intermediate: int) -> None:
    experts, routing = build_experts(kind, intermediate=intermediate), draw_routing()
    assert is_close(call(experts, NAME, routing), call(experts, "eager", routing))
    found, expected = gradients(experts, NAME, routing), gradients(experts, "eager", routing)
    assert all(is_close(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    experts.config._experts_implementation = NAME
    if kind.__name__ in REASONS or INSTALLED <= LAST_READ:  # a later release has classes that nobody has read yet
        assert _reason(experts) == REASONS.get(kind.__name__, NAME)


@given(data=st.data())
def test_output_and_gradients_equal_eager_when_shapes_and_routing_are_drawn(data: st.DataObject) -> None:
    num_experts, num_tokens = data.draw(st.integers(1, 7), "experts"), data.draw(st.integers(0, 9), "tokens")
    top_k = data.draw(st.integers(1, num_experts), "top-k")
    width, hidden_width = data.draw(st.integers(1, 9), "width"), data.draw(st.integers(1, 9), "expert width")
    experts = build_experts(experts=num_experts, intermediate=hidden_width, hidden_size=width).double()
    # The id after the last marks an expert of another rank; on one token, a pair or all of them may be elsewhere.
    ids = st.lists(st.permutations(range(num_experts + 1)), min_size=num_tokens, max_size=num_tokens)
    ids_TK = torch.tensor([row[:top_k] for row in data.draw(ids, "ids")], dtype=torch.int64).view(num_tokens, top_k)
    hidden_TD = torch.randn(num_tokens, width, dtype=torch.float64, requires_grad=True)
    routing = [hidden_TD, ids_TK, torch.rand(num_tokens, top_k, dtype=torch.float64, requires_grad=True)]
    assert is_close(call(experts, NAME, routing), call(experts, "eager", routing))
    found, expected = gradients(experts, NAME, routing), gradients(experts, "eager", routing)
    assert all(is_close(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    experts.config._experts_implementation = NAME
    assert _reason(experts) == NAME


def test_sentinels_count_nowhere_when_ranks_share_the_experts() -> None:
    experts, routing = build_experts(), draw_routing()
    routing[1][2:5] = 5
    experts._is_expert_parallel = True
    found = gradients(experts, NAME, routing)
    assert not found[0][2:5].any()
    assert not found[1][2:5].any()
    expected = gradients(experts, "grouped_mm", routing)
    assert is_close(found[0], expected[0])
    assert not call(experts, NAME, routing)[2:5].any()


def test_ids_beyond_the_sentinel_are_refused_when_a_router_errs() -> None:
    experts, routing = build_experts(), draw_routing()
    routing[1][3, 1] = 8
    with pytest.raises(UnsupportedError, match=r"called with the id 8, but there are 5") as caught:
        call(experts, NAME, routing)
    assert caught.value.hint == "ids run from 0 to 4, and 5 marks an expert of another rank"


def test_reason_is_that_of_the_last_call_when_dtypes_differ() -> None:
    experts, routing = build_experts(), draw_routing()
    mixed = [routing[0].bfloat16(), *routing[1:]]
    assert torch.equal(call(experts, NAME, mixed), call(experts, "grouped_mm", mixed))
    experts.config._experts_implementation = NAME
    assert _reason(experts) == "hidden states of torch.bfloat16 met weights of torch.float32 and torch.float32"
    call(experts, NAME, routing)
    assert _reason(experts) == NAME


class _Sharded(Tensor):
    """A subclass with a meaning that we do not know."""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensor: tensor.detach().as_subclass(_Sharded), "it was called with a _Sharded"),
        (lambda tensor: tensor.to("meta"), "hidden states on meta met weights on cpu and cpu"),
        (lambda tensor: tensor[None], "its hidden states, expert ids or routing weights were of unusual shapes"),
    ],
)
def test_call_is_transformers_when_hidden_states_are_unusual(change, reason: str) -> None:
    experts, (hidden_TD, *rest) = build_experts(), draw_routing()
    experts.config._experts_implementation = NAME
    # transformers may refuse it too; what counts is that we did not compute it.
    with contextlib.suppress(RuntimeError, IndexError, NotImplementedError):
        experts(change(hidden_TD), *rest)
    assert _reason(experts) == reason


def test_shapes_are_inferred_when_everything_is_on_meta() -> None:
    experts, routing = build_experts().to("meta"), [each.to("meta") for each in draw_routing()]
    reason = plugin._Call(*routing, experts.gate_up_proj, experts.down_proj).refuse()
    assert reason == "moesaic has no kernel for meta"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_call_is_transformers_when_traced() -> None:
    experts, routing = build_experts(), [each.detach() for each in draw_routing()]
    experts.config._experts_implementation = NAME
    traced = torch.jit.trace(experts, routing, check_trace=False)
    assert _reason(experts) == "the call is compiled or traced"
    other = [each.detach() for each in draw_routing()]
    assert is_close(traced(*other), call(experts, "eager", other))


class _Other(nn.SiLU):
    def forward(self, gate: Tensor) -> Tensor:
        return gate


def _hooked() -> nn.Module:
    function = nn.SiLU()
    function.register_forward_hook(lambda module, inputs, output: 2 * output)
    return function


def _patched() -> nn.Module:
    function = nn.SiLU()
    function.forward = torch.relu
    return function


HOOKED = "its activation has hooks or another forward"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nn.SiLU(), NAME),
        (nn.functional.silu, NAME),
        (nn.GELU(), "its activation is GELU"),
        (torch.relu, "its activation is relu"),
        (_Other(), "its activation is _Other"),
        (_hooked(), HOOKED),
        (_patched(), HOOKED),
    ],
)
def test_activation_is_silu_or_left_to_transformers_when_set(function, expected: str) -> None:
    experts, routing = build_experts(), draw_routing()
    del experts.act_fn
    experts.act_fn = function
    assert is_close(call(experts, NAME, routing), call(experts, "eager", routing))
    experts.config._experts_implementation = NAME
    assert _reason(experts) == expected


def test_gate_is_left_to_transformers_when_an_instance_has_its_own() -> None:
    experts, routing = build_experts(intermediate=6), draw_routing()
    experts._apply_gate = lambda gate_up: gate_up[:, :6]
    assert torch.equal(call(experts, NAME, routing), call(experts, "batched_mm", routing))
    experts.config._experts_implementation = NAME
    assert _reason(experts) == GATE


def test_interleaved_rows_are_left_to_transformers_when_flagged() -> None:
    experts = build_experts()
    experts.is_concatenated, experts.config._experts_implementation = False, NAME
    assert _reason(experts) == "its gate and up rows are interleaved"


class _Adapted(nn.Module):
    """A low-rank change of a weight, as adapters make it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(5, weight.shape[1], 1)), nn.Parameter(torch.randn(5, 1, 8))
        self.looks = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.looks += 1
        return weight + self.left @ self.right


def test_gradients_reach_adapters_when_weights_are_parametrised() -> None:
    experts, routing = build_experts(), draw_routing()
    parametrize.register_parametrization(experts, "gate_up_proj", _Adapted(experts.gate_up_proj))
    adapted = experts.parametrizations.gate_up_proj[0]
    adapted.looks = 0
    found = gradients(experts, NAME, routing)
    assert adapted.looks == 1
    assert _reason(experts) == NAME
    expected = gradients(experts, "eager", routing)
    assert all(is_close(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_second_derivatives_raise_when_asked_for() -> None:
    experts, routing = build_experts(), draw_routing()
    with pytest.raises((RuntimeError, UnsupportedError)):  # of torch's own functions, of the compiled kernels
        torch.autograd.grad(call(experts, NAME, routing).sum(), routing[0], create_graph=True)[0].sum().backward()


def test_function_transforms_raise_when_applied() -> None:
    experts, routing = build_experts(), [each.detach() for each in draw_routing()]
    experts.config._experts_implementation = NAME
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda hidden_TD: experts(hidden_TD, *routing[1:]).sum())(routing[0])


def test_quantised_experts_go_to_their_own_table_when_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.finegrained_fp8 import ALL_FP8_EXPERTS_FUNCTIONS

    experts, routing = build_experts(), draw_routing()
    experts._apply_gate = lambda gate_up: gate_up
    monkeypatch.setitem(ALL_FP8_EXPERTS_FUNCTIONS._local_mapping, "grouped_mm", lambda *inputs: inputs)
    assert ALL_FP8_EXPERTS_FUNCTIONS[NAME](experts, *routing) == (experts, *routing)


@pytest.mark.parametrize(
    ("kind", "capability", "intermediate", "expected"),
    [
        ("cuda", (9, 0), 8, None),
        ("cuda", (7, 5), 8, "grouped products need compute capability 8.0"),
        ("cuda", (9, 0), 6, "grouped products need widths of multiples of 16 bytes"),
        ("mps", None, 8, "moesaic has no kernel for mps"),
    ],
)
def test_device_is_refused_when_its_products_cannot(kind, capability, intermediate, expected, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert plugin._refuse_device(torch.device(kind), torch.empty(5, 8, intermediate)) == expected


def test_fallback_is_told_once_when_it_happens_again(caplog: pytest.LogCaptureFixture) -> None:
    plugin._log_once.cache_clear()
    experts, routing = build_experts(experts_classes()["GptOssExperts"]), draw_routing()
    with caplog.at_level(logging.WARNING, "moesaic"):
        for _ in range(3):
            call(experts, NAME, routing)
    assert caplog.messages == ["GptOssExperts is computed by transformers, not by moesaic: its experts have biases"]


def test_register_changes_nothing_more_when_called_twice() -> None:
    experts, routing = build_experts(), draw_routing()
    expected = call(experts, NAME, routing)
    names = list(plugin._load_interface()[1][0])
    register()
    assert list(plugin._load_interface()[1][0]) == names
    assert torch.equal(call(experts, NAME, routing), expected)


@pytest.mark.parametrize("entry", [register, lambda: explain(nn.Linear(2, 2))], ids=["register", "explain"])
def test_error_names_the_package_when_transformers_is_missing(entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match=r"plugging moesaic into transformers: it cannot be imported") as caught:
        entry()
    assert caught.value.hint == "pip install 'transformers>=5.7'"


def test_error_names_the_release_when_transformers_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers
    from transformers import modeling_utils

    monkeypatch.setattr(transformers, "__version__", "5.0.0")
    monkeypatch.delattr(modeling_utils, "ALL_EXPERTS_FUNCTIONS")
    with pytest.raises(UnsupportedError, match=r"release 5\.0\.0 accepts only its own experts") as caught:
        register()
    assert caught.value.hint == "pip install 'transformers>=5.7'"
