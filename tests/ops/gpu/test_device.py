"""What only a real device can show."""

import warnings
from collections.abc import Iterator

import pytest
import torch

from moesaic.ops.gpu.refusal import HAS_TRITON

if not (HAS_TRITON and torch.cuda.is_available()):
    pytest.skip("needs a CUDA device and triton", allow_module_level=True)

from moesaic.ops.gpu.mixture import mix_experts
from moesaic.ops.gpu.permute import permute
from moesaic.ops.gpu.route import group_by_expert, top_k
from moesaic.ops.permutation import Permutation

pytestmark = pytest.mark.gpu


@pytest.fixture
def _waiting_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the mode does not see every way of waiting
        torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def _step(hidden_TD: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> list[torch.Tensor]:
    """Return output and gradients of one mixture, its routing taken from the input."""
    scores_TE = hidden_TD.detach()[:, : len(down)].float()
    expert_ids_TK = top_k(scores_TE, 2)
    weights_N = scores_TE.softmax(-1).gather(1, expert_ids_TK).view(-1).requires_grad_()
    token_ids_N = torch.arange(len(hidden_TD), device="cuda").repeat_interleave(2, output_size=2 * len(hidden_TD))
    permutation = group_by_expert(token_ids_N, expert_ids_TK.view(-1), len(hidden_TD), len(down))
    inputs = [hidden_TD, weights_N, gate_up, down]
    out_TD = mix_experts(*inputs, permutation)
    return [out_TD, *torch.autograd.grad(out_TD, inputs, torch.ones_like(out_TD))]


def _draw_inputs() -> list[torch.Tensor]:
    shapes = (300, 64), (8, 96, 64), (8, 64, 48)
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]


@pytest.mark.usefixtures("_waiting_is_an_error")
def test_mixture_does_not_wait_for_the_device_when_it_trains() -> None:
    _step(*_draw_inputs())


def test_mixture_is_the_same_bit_for_bit_when_repeated() -> None:
    inputs = _draw_inputs()
    first = _step(*inputs)
    for _ in range(5):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(first, _step(*inputs), strict=True))


def test_permute_reaches_every_row_when_there_are_more_numbers_than_32_bits_count() -> None:
    num_rows, width = 2**20 + 3, 2048
    hidden_TD = torch.randn(5, width, device="cuda", dtype=torch.bfloat16)
    token_ids_N = torch.arange(num_rows, device="cuda") % 5
    unused = token_ids_N[:0]
    rows_ND = permute(hidden_TD, Permutation(token_ids_N, unused, unused, unused))
    assert torch.equal(rows_ND[-8:], hidden_TD[token_ids_N[-8:]])
