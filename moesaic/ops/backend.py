"""Which implementation runs an operation, and why the others do not.

A table, best first. Each entry answers for given tensors with the reason of its refusal, or None. The last one, plain
torch, refuses nothing. `moesaic doctor` prints the table.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from torch import Tensor

from moesaic.ops.cpu import mixture as compiled_mixture
from moesaic.ops.cpu import routing as compiled_routing
from moesaic.ops.gpu import refusal as gpu

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation.

    Attributes:
        name: 'compiled', 'triton' or 'torch'.
        explain_refusal: given the floating tensors of the operation, or the first alone, why they cannot be taken;
            None where they can.
    """

    name: str
    explain_refusal: Callable[..., str | None]


def _accept(*_: Tensor) -> None:
    return None


def _first(explain_refusal: Callable[[Tensor], str | None]) -> Callable[..., str | None]:
    return lambda first, *_: explain_refusal(first)


def _explain_gpu_mixture(*tensors: Tensor) -> str | None:
    # `moesaic doctor` asks with one tensor; `expert_mlp` has no weights.
    return (
        gpu.refusal(*tensors) if len(tensors) == 1 else gpu.mix_experts_refusal(tensors[0], tensors[0], *tensors[-2:])
    )


_TORCH = Backend("torch", _accept)
_COMPILED_MIXTURE = Backend("compiled", _first(compiled_mixture.explain_refusal))
_COMPILED_ROUTING = Backend("compiled", _first(compiled_routing.explain_refusal))
_TRITON = Backend("triton", gpu.refusal)
_TRITON_MIXTURE = Backend("triton", _explain_gpu_mixture)

BACKENDS: dict[str, tuple[Backend, ...]] = {
    "top_k": (_COMPILED_ROUTING, Backend("triton", gpu.top_k_refusal), _TORCH),
    "group_by_expert": (_COMPILED_ROUTING, _TRITON, _TORCH),
    "permute": (_TRITON, _TORCH),
    "combine": (_TRITON, _TORCH),
    "expert_mlp": (_COMPILED_MIXTURE, _TRITON_MIXTURE, _TORCH),
    "mix_experts": (_COMPILED_MIXTURE, _TRITON_MIXTURE, _TORCH),
    "mix_experts_quantised": (_COMPILED_MIXTURE, _TORCH),
    "mix_in_waves": (_COMPILED_MIXTURE, _TORCH),
    "linear": (_COMPILED_MIXTURE, _TORCH),
    "quantised_linear": (_COMPILED_MIXTURE, _TORCH),
}


def choose_backend(operation: str, *tensors: Tensor) -> str:
    """Return the name of the first implementation that takes the tensors; log once why better ones do not."""
    for backend in BACKENDS[operation]:
        refusal = backend.explain_refusal(*tensors)
        if refusal is None:
            return backend.name
        _log_once(operation, backend.name, refusal)
    raise AssertionError("the last implementation refuses nothing")


def load_gpu_module(stem: str) -> ModuleType:
    """Import the Triton twin of an operation's file, once it is chosen: triton itself is optional, and slow to load."""
    return importlib.import_module(f"moesaic.ops.gpu.{stem}")


@cache
def _log_once(operation: str, name: str, refusal: str) -> None:
    _log.info("%s: not computed by %s: %s", operation, name, refusal)


def explain_backends(tensor: Tensor) -> dict[str, dict[str, str | None]]:
    """Return, for each operation and implementation, the reason of its refusal of such a tensor; None where it runs."""
    return {
        operation: {backend.name: backend.explain_refusal(tensor) for backend in backends}
        for operation, backends in BACKENDS.items()
    }
