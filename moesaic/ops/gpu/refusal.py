"""Why a kernel cannot be used: each function returns a reason, or None where there is none. Imports no triton."""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# A row of scores lies whole in one program, and is looked through once for each choice: more are better sorted.
MAX_COLUMNS = 1024
# From here on all three dtypes are at home.
_LEAST_CAPABILITY = (8, 0)
# Torch's grouped products want every row to begin at a multiple of this.
_ROW_BYTES = 16


def refusal(*tensors: Tensor) -> str | None:
    """Say why the kernels cannot take tensors together; does not wait for the device."""
    if not HAS_TRITON:
        return "triton is not installed"
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"the tensors are on several devices: {', '.join(sorted(map(str, devices)))}"
    strange = [tensor.dtype for tensor in tensors if tensor.is_floating_point() and tensor.dtype not in DTYPES]
    if strange:
        return f"dtype {_name(strange[0])} is not supported"
    return _device_refusal(devices.pop()) if devices else None


def top_k_refusal(scores_RE: Tensor) -> str | None:
    """Say why `route.top_k` cannot take scores."""
    num_columns = scores_RE.shape[-1]
    if num_columns > MAX_COLUMNS:
        return f"{num_columns} columns are more than {MAX_COLUMNS}"
    return refusal(scores_RE)


def mix_experts_refusal(hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor) -> str | None:
    """Say why `mixture.mix_experts` cannot take its tensors."""
    dtypes = {tensor.dtype for tensor in (hidden_TD, gate_up, down)}
    if len(dtypes) > 1:
        return f"the dtypes differ: {', '.join(sorted(map(_name, dtypes)))}"
    for width in down.shape[1:]:
        if width * down.element_size() % _ROW_BYTES:
            return f"{width} values of {_name(down.dtype)} are no multiple of {_ROW_BYTES} bytes"
    return refusal(hidden_TD, weights_N, gate_up, down)


def is_interpreting() -> bool:
    """Tell whether the kernels run on the CPU, in triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _device_refusal(device: torch.device) -> str | None:
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _LEAST_CAPABILITY:
            return None
        return "compute capability {}.{} is below {}.{}".format(*capability, *_LEAST_CAPABILITY)
    if device.type == "cpu" and is_interpreting():
        return None
    return f"the tensors are on the {device.type}" if torch.cuda.is_available() else "no CUDA device"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
