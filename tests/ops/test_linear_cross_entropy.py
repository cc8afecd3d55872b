"""Cross-entropy without logits: values, gradients, what is refused, and the memory it takes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import ConfigError, MoesaicError, UnsupportedError
from moesaic.ops import linear_cross_entropy as op
from moesaic.ops.linear_cross_entropy import linear_cross_entropy
from moesaic.ops.loss import IGNORED_LABEL, cross_entropy_sum
from moesaic.ops.reference import linear_cross_entropy as oracle
from moesaic.testing.tolerance import TOLERANCES, is_close, relative_error


@pytest.fixture(autouse=True, scope="module")
def _small_tiles() -> Iterator[None]:
    """Cut tiles of 3 tokens by 4 columns, so that small shapes need several, and a rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "_TOKENS", 3)
        patch.setattr(op, "_COLUMNS", 4)
        yield


def _draw(tokens: int, vocabulary: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden_TD = torch.randn(tokens, width).to(dtype).requires_grad_()
    head = torch.randn(vocabulary, width).to(dtype).requires_grad_()
    return hidden_TD, head, torch.randint(vocabulary, (tokens,))


def _assert_equals_the_oracle(
    hidden_TD: Tensor, head: Tensor, labels_T: Tensor, smoothing: float = 0.0, z_loss: float = 0.0, times: float = 1.0
) -> None:
    """Compare loss and gradients with the oracle in float64."""
    found = times * linear_cross_entropy(hidden_TD, head, labels_T, smoothing, z_loss)
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden_TD, head)]
    expected = times * oracle.linear_cross_entropy(*wide, labels_T, IGNORED_LABEL, smoothing, z_loss)
    assert found.dtype == torch.promote_types(hidden_TD.dtype, torch.float32)
    assert is_close(found.to(hidden_TD.dtype), expected)
    grads = torch.autograd.grad(found, [hidden_TD, head])
    for grad, tensor, right in zip(grads, (hidden_TD, head), torch.autograd.grad(expected, wide), strict=True):
        assert (grad.dtype, grad.shape) == (tensor.dtype, tensor.shape)
        assert relative_error(grad, right) <= max(TOLERANCES[hidden_TD.dtype], TOLERANCES[grad.dtype])


# No token, one, a whole tile, a tile and a rest; the same of the vocabulary; a width of one.
SHAPES = [(0, 5, 3), (1, 1, 1), (1, 9, 4), (3, 4, 5), (7, 13, 8), (6, 8, 1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (1.0, 0.3)])
def test_loss_and_gradients_equal_the_oracle_when_shape_is(
    shape: tuple[int, int, int], dtype: torch.dtype, smoothing: float, z_loss: float
) -> None:
    _assert_equals_the_oracle(*_draw(*shape, dtype), smoothing, z_loss)


@given(
    labels=st.lists(st.sampled_from([IGNORED_LABEL, 0, 3, 4, 8]), max_size=8),
    smoothing=st.sampled_from([0.0, 0.2]),
    z_loss=st.sampled_from([0.0, 0.1]),
    times=st.sampled_from([1.0, -2.5, 0.0, 1 / 3]),
)
def test_loss_and_gradients_equal_the_oracle_when_labels_and_scale_are_drawn(
    labels: list[int], smoothing: float, z_loss: float, times: float
) -> None:
    hidden_TD, head, _ = _draw(len(labels), 9, 3, torch.float32)
    _assert_equals_the_oracle(hidden_TD, head, torch.tensor(labels, dtype=torch.int64), smoothing, z_loss, times)


@pytest.mark.parametrize("label", [IGNORED_LABEL, 0, 12])
def test_loss_and_gradients_equal_the_oracle_when_all_labels_are(label: int) -> None:
    hidden_TD, head, labels_T = _draw(7, 13, 8, torch.float32)
    _assert_equals_the_oracle(hidden_TD, head, labels_T.fill_(label), 0.1, 0.1)


def test_loss_equals_torch_when_smoothed() -> None:
    hidden_TD, head, labels_T = _draw(7, 13, 8, torch.float64)
    labels_T[2] = IGNORED_LABEL
    expected = torch.nn.functional.cross_entropy(
        hidden_TD @ head.t(), labels_T, ignore_index=IGNORED_LABEL, reduction="sum", label_smoothing=0.3
    )
    assert is_close(linear_cross_entropy(hidden_TD, head, labels_T, smoothing=0.3), expected)


def test_gradients_equal_finite_differences_when_all_terms_are_on() -> None:
    hidden_TD, head, labels_T = _draw(5, 6, 3, torch.float64)
    labels_T[1] = IGNORED_LABEL
    assert torch.autograd.gradcheck(
        lambda hidden, head: linear_cross_entropy(hidden, head, labels_T, 0.1, 0.2), [hidden_TD, head]
    )


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradients_have_the_dtypes_of_their_inputs_when_these_are(
    hidden_dtype: torch.dtype, head_dtype: torch.dtype
) -> None:
    hidden_TD, head, labels_T = _draw(7, 13, 8, torch.bfloat16)
    hidden_TD = hidden_TD.detach().to(hidden_dtype).requires_grad_()
    _assert_equals_the_oracle(hidden_TD, head.detach().to(head_dtype).requires_grad_(), labels_T)


def test_gradient_of_a_sure_token_is_small_when_bfloat16() -> None:
    # The label's share of the softmax is 0.9975, whose nearest bfloat16 is 0.9961.
    hidden_TD = torch.ones(1, 1).bfloat16().requires_grad_()
    head = torch.tensor([[6.0], [0.0]]).bfloat16().requires_grad_()
    _assert_equals_the_oracle(hidden_TD, head, torch.tensor([0]))


def test_loss_of_a_sure_token_is_that_of_torch_when_float32_is_coarser_at_its_logit() -> None:
    head = torch.tensor([[1012.0], [1000.0]])
    expected = cross_entropy_sum(head.t(), torch.tensor([0]))
    assert is_close(linear_cross_entropy(torch.ones(1, 1), head, torch.tensor([0])), expected)


def test_loss_and_gradients_stay_when_inputs_are_not_contiguous() -> None:
    hidden_TD, head, labels_T = _draw(7, 13, 8, torch.float32)
    strided = [tensor.detach().t().contiguous().t().requires_grad_() for tensor in (hidden_TD, head)]
    expected = linear_cross_entropy(hidden_TD, head, labels_T)
    found = linear_cross_entropy(*strided, labels_T.repeat_interleave(2)[::2])
    assert is_close(found, expected)
    grads = torch.autograd.grad(found, strided), torch.autograd.grad(expected, [hidden_TD, head])
    assert all(is_close(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.parametrize("needed", [0, 1])
def test_gradient_is_the_same_when_the_other_is_not_needed(needed: int) -> None:
    inputs, labels_T = [*_draw(7, 13, 8, torch.float32)[:2]], torch.randint(13, (7,))
    expected = torch.autograd.grad(linear_cross_entropy(*inputs, labels_T), inputs)[needed]
    inputs[1 - needed].requires_grad_(False)
    linear_cross_entropy(*inputs, labels_T).backward()
    assert torch.equal(inputs[needed].grad, expected)
    assert inputs[1 - needed].grad is None


def test_ignored_token_touches_nothing_when_its_hidden_state_is_nan() -> None:
    hidden_TD, head, labels_T = _draw(5, 6, 3, torch.float32)
    alone = linear_cross_entropy(hidden_TD[1:], head, labels_T[1:])
    with torch.no_grad():
        hidden_TD[0] = float("nan")
    labels_T[0] = IGNORED_LABEL
    found = linear_cross_entropy(hidden_TD, head, labels_T)
    assert torch.equal(found, alone)
    found.backward()
    assert torch.equal(hidden_TD.grad[0], torch.zeros(3))
    assert head.grad.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(5, 6), slice(0, 9)])
def test_loss_is_that_of_torch_when_some_logits_are(value: float, rows: slice) -> None:
    hidden_TD, head = torch.ones(2, 1), torch.randn(9, 1)
    head[rows] = value
    for label in range(9):
        labels_T = torch.tensor([label, 1])
        expected = cross_entropy_sum(hidden_TD @ head.t(), labels_T)
        found = linear_cross_entropy(hidden_TD, head, labels_T)
        assert torch.allclose(found, expected, equal_nan=True)


def test_loss_is_finite_when_logits_are_beyond_the_range_of_exp() -> None:
    _assert_equals_the_oracle(
        torch.full((2, 1), 500.0).requires_grad_(), _draw(1, 9, 1, torch.float32)[1], torch.tensor([0, 7])
    )


def test_gradient_can_be_taken_again_when_the_graph_is_kept() -> None:
    hidden_TD, head, labels_T = _draw(5, 6, 3, torch.float32)
    loss = linear_cross_entropy(hidden_TD, head, labels_T)
    first, again = (torch.autograd.grad(loss, [hidden_TD, head], retain_graph=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_second_derivative_is_refused_when_asked_for() -> None:
    hidden_TD, head, labels_T = _draw(5, 6, 3, torch.float32)
    loss = linear_cross_entropy(hidden_TD, head, labels_T)
    with pytest.raises(UnsupportedError, match=r"^linear_cross_entropy has no second derivative$"):
        torch.autograd.grad(loss, hidden_TD, create_graph=True)


LABELS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"hidden_TD": torch.zeros(1, 2, 3)}, ConfigError, r"hidden_TD of shape \(1, 2, 3\)"),
        ({"head": torch.zeros(3)}, ConfigError, r"head of shape \(3,\)"),
        ({"head": torch.zeros(5, 4)}, ConfigError, r"head of shape \(5, 4\) with hidden_TD of shape \(2, 3\)"),
        ({"labels_T": LABELS[:1]}, ConfigError, r"labels_T of shape \(1,\) with hidden_TD of shape \(2, 3\)"),
        ({"head": torch.zeros(5, 3, device="meta")}, ConfigError, "hidden_TD on cpu, head on meta and labels_T on cpu"),
        ({"hidden_TD": torch.zeros(2, 3, dtype=torch.int8)}, UnsupportedError, r"hidden_TD of torch\.int8"),
        ({"head": torch.zeros(5, 3, dtype=torch.int64)}, UnsupportedError, r"head of torch\.int64"),
        ({"labels_T": LABELS.int()}, UnsupportedError, r"labels_T of torch\.int32"),
        ({"labels_T": LABELS + 5}, ConfigError, "label 5 at token 0 with a head of 5 rows"),
        ({"labels_T": torch.tensor([4, -1])}, ConfigError, "label -1 at token 1 with a head of 5 rows"),
        ({"smoothing": 1.5}, ConfigError, r"smoothing of 1\.5"),
        ({"smoothing": float("nan")}, ConfigError, "smoothing of nan"),
        ({"z_loss": -1.0}, ConfigError, r"z_loss of -1\.0"),
    ],
)
def test_argument_is_refused_by_name_when_it_does_not_fit(
    changes: dict[str, Tensor | float], error: type[MoesaicError], text: str
) -> None:
    arguments = {"hidden_TD": torch.zeros(2, 3), "head": torch.zeros(5, 3), "labels_T": LABELS, **changes}
    with pytest.raises(error, match=f"^linear_cross_entropy got {text}$") as raised:
        linear_cross_entropy(**arguments)
    assert raised.value.hint


# Prints how far a process grows beyond what it holds before a loss and its gradients, and those gradients.
PROGRAM = """
import sys, torch
from pathlib import Path
from torch.nn import functional
from moesaic.ops.linear_cross_entropy import linear_cross_entropy
from moesaic.ops.loss import cross_entropy_sum

def kilobytes(key):
    return int(Path("/proc/self/status").read_text().split(key + ":")[1].split()[0])

def run(tokens, vocabulary):
    hidden_TD = torch.randn(tokens, WIDTH).to(dtype).requires_grad_()
    head = torch.randn(vocabulary, WIDTH).to(dtype).requires_grad_()
    labels_T = torch.randint(vocabulary, (tokens,))
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    if sys.argv[1] == "torch":
        loss = cross_entropy_sum(functional.linear(hidden_TD, head), labels_T)
    else:
        loss = linear_cross_entropy(hidden_TD, head, labels_T)
    loss.backward()
    return (kilobytes("VmHWM") - before) * 1024 - hidden_TD.grad.nbytes - head.grad.nbytes

WIDTH, dtype = int(sys.argv[3]), getattr(torch, sys.argv[2])
run(2048, 2048)  # what the libraries keep
print(run(2048, 50304))
"""


def _peak_share(way: str, dtype: str, width: int) -> float:
    """Return the peak beyond inputs and gradients as a share of the logits in float32."""
    command = [sys.executable, "-c", PROGRAM, way, dtype, str(width)]
    # With a threshold of its own glibc returns what is freed; else holes in its heap are counted, which vary.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout) / (2048 * 50304 * 4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read in Linux's way")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_is_under_a_twentieth_of_the_logits_when_the_vocabulary_is_large(dtype: str) -> None:
    assert _peak_share("ours", dtype, 256) < 1 / 20
    # The gauge sees the logits where there are some.
    assert _peak_share("torch", dtype, 64) > 1
