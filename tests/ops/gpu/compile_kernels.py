"""Compile every kernel for real devices, on a machine without one: `python -m tests.ops.gpu.compile_kernels`.

The interpreter forgives what the compiler refuses. Here each launch is caught, and its kernel is compiled to machine
code for the types of its arguments; nothing runs, so what the operations return has no meaning.
"""

from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moesaic.ops.gpu import permute, route, swiglu
from moesaic.ops.permutation import Permutation

# Ampere and Hopper, by compute capability; threads of a warp.
TARGETS = (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32))
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
compiled: set[str] = set()


def compile_launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | int, **constants: Any) -> None:
    """Take the place of `launch`."""
    names = kernel.arg_names
    given = {**dict(zip(names, arguments, strict=False)), **constants}
    types = {name: TYPES[value.dtype] if isinstance(value, Tensor) else "i32" for name, value in given.items()}
    # As at a real launch, a size of one is a constant.
    ones = {name: value for name, value in given.items() if types[name] == "i32" and value == 1}
    fixed = {**constants, **ones}
    signature = {name: "constexpr" if name in fixed else types[name] for name in names}
    for target in TARGETS:
        binary = triton.compile(ASTSource(kernel, signature, fixed), target=target)
        assert binary.asm["cubin"]
        compiled.add(kernel.__name__)


def compile_all(dtype: torch.dtype, num_tokens: int, width: int) -> None:
    """Call every operation forward and backward."""
    route.top_k(torch.zeros(num_tokens, 8, dtype=dtype), 2)
    ids_N = torch.arange(num_tokens)
    route.group_by_expert(ids_N, ids_N, num_tokens, num_tokens)
    permutation = Permutation(ids_N, ids_N, ids_N, torch.ones_like(ids_N))
    hidden_TD = torch.zeros(num_tokens, 2 * width, dtype=dtype, requires_grad=True)
    weights_N = torch.zeros(num_tokens, requires_grad=True)
    rows_ND = permute.permute(hidden_TD, permutation)
    rows_ND.sum().backward()
    permute.combine(rows_ND.detach().requires_grad_(), weights_N, permutation).sum().backward()
    swiglu.swiglu(hidden_TD).sum().backward()


if __name__ == "__main__":
    for module in (route, permute, swiglu):
        patch.object(module, "launch", compile_launch).start()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        compile_all(dtype, 3, 40)
    compile_all(torch.bfloat16, 1, 1)
    print(*sorted(compiled))
