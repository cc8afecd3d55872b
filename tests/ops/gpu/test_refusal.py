"""Each reason not to use a kernel, in the words a person will read."""

import pytest
import torch

from moesaic.ops.gpu import refusal as module
from moesaic.ops.gpu.refusal import mix_experts_refusal, refusal, top_k_refusal


@pytest.fixture
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HAS_TRITON", True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def _with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HAS_TRITON", True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_kernels_are_refused_when_triton_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HAS_TRITON", False)
    assert refusal(torch.zeros(1)) == "triton is not installed"


@pytest.mark.usefixtures("_with_cuda")
def test_kernels_are_refused_when_no_device_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(torch.zeros(1)) == "the tensors are on the cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(torch.zeros(1)) == "no CUDA device"


@pytest.mark.usefixtures("_with_cuda")
def test_kernels_are_refused_when_the_device_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert module._device_refusal(torch.device("cuda:0")) == "compute capability 7.5 is below 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert module._device_refusal(torch.device("cuda:0")) is None


@pytest.mark.usefixtures("_interpreted")
def test_kernels_are_refused_when_tensors_do_not_fit() -> None:
    assert refusal(torch.zeros(1), torch.zeros(1, dtype=torch.float64)) == "dtype float64 is not supported"
    both = torch.zeros(1), torch.zeros(1, device="meta")
    assert refusal(*both) == "the tensors are on several devices: cpu, meta"
    assert top_k_refusal(torch.zeros(1, 1025)) == "1025 columns are more than 1024"


@pytest.mark.usefixtures("_interpreted")
def test_mixture_is_refused_when_the_products_would_be() -> None:
    hidden_TD, weights_N, down = torch.zeros(2, 8), torch.zeros(2), torch.zeros(3, 8, 6)
    assert mix_experts_refusal(hidden_TD, weights_N, torch.zeros(3, 12, 8), down) == (
        "6 values of float32 are no multiple of 16 bytes"
    )
    assert mix_experts_refusal(hidden_TD.half(), weights_N, torch.zeros(3, 12, 8), down) == (
        "the dtypes differ: float16, float32"
    )


@pytest.mark.usefixtures("_interpreted")
def test_kernels_are_accepted_when_the_interpreter_runs_them() -> None:
    assert refusal(torch.zeros(1), torch.zeros(1, dtype=torch.int64)) is None
    assert refusal() is None
    assert top_k_refusal(torch.zeros(1, 1024)) is None
    tensors = torch.zeros(2, 8), torch.zeros(2), torch.zeros(3, 8, 8), torch.zeros(3, 8, 4)
    assert mix_experts_refusal(*tensors) is None
