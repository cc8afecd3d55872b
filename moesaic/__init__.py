"""Train Mixture-of-Experts language models, generate from them, exchange them with Hugging Face."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from moesaic.errors import MoesaicError

__version__ = "0.1.0"
__all__ = ["LLM", "Completion", "MoesaicError", "SamplingParams", "load_model"]

if TYPE_CHECKING:
    from moesaic.checkpoint.load import load_model
    from moesaic.infer.engine import LLM
    from moesaic.infer.request import Completion, SamplingParams

# Resolved on first use: importing the package must not load torch.
_LAZY = {
    "LLM": "moesaic.infer.engine",
    "Completion": "moesaic.infer.request",
    "SamplingParams": "moesaic.infer.request",
    "load_model": "moesaic.checkpoint.load",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'moesaic' has no attribute '{name}'")
