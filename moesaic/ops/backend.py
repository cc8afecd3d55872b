"""Which implementation runs an operation, and why the others do not.

A table, best first. Each entry answers for given tensors with the reason of its refusal, or None. The last one, plain
torch, refuses nothing. `moesaic doctor` prints the table.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from moesaic.ops.cpu import mixture as compiled_mixture

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation.

    Attributes:
        name: 'compiled', 'triton' or 'torch'.
        explain_refusal: given the first tensor of the operation, why it cannot be taken; None where it can.
    """

    name: str
    explain_refusal: Callable[[Tensor], str | None]


def _accept(_: Tensor) -> None:
    return None


_TORCH = Backend("torch", _accept)
_COMPILED_MIXTURE = Backend("compiled", compiled_mixture.explain_refusal)

BACKENDS: dict[str, tuple[Backend, ...]] = {
    "mix_experts": (_COMPILED_MIXTURE, _TORCH),
    "mix_experts_quantised": (_COMPILED_MIXTURE, _TORCH),
    "expert_mlp": (_COMPILED_MIXTURE, _TORCH),
}


def choose_backend(operation: str, tensor: Tensor) -> str:
    """Return the name of the first implementation that takes the tensor; log once why better ones do not."""
    for backend in BACKENDS[operation]:
        refusal = backend.explain_refusal(tensor)
        if refusal is None:
            return backend.name
        _log_once(operation, backend.name, refusal)
    raise AssertionError("the last implementation refuses nothing")


@cache
def _log_once(operation: str, name: str, refusal: str) -> None:
    _log.info("%s: not computed by %s: %s", operation, name, refusal)


def explain_backends(tensor: Tensor) -> dict[str, dict[str, str | None]]:
    """Return, for each operation and implementation, the reason of its refusal of such a tensor; None where it runs."""
    return {
        operation: {backend.name: backend.explain_refusal(tensor) for backend in backends}
        for operation, backends in BACKENDS.items()
    }
