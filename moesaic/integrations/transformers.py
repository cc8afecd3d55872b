"""moesaic's experts as an `experts_implementation` of transformers.

    register()
    model.set_experts_implementation("moesaic")     every MoE model that uses transformers' experts interface
    explain(model)                                  {"model.layers.0.mlp.experts": "moesaic", ...}

transformers hands each call of an experts module to a function chosen by name. Ours looks at the module and at the
call: what `mix_experts` computes, silu(gate) * up without anything around it, goes there; everything else goes to
transformers' own `grouped_mm` (`batched_mm` for widths that it does not take) with a reason, which is logged once and
which `explain` shows.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from moesaic.errors import UnsupportedError
from moesaic.ops.mixture import mix_experts
from moesaic.ops.permute import group_by_expert

Function = Callable[..., Tensor]

NAME = "moesaic"
# What a module must say of itself, else the reason. Older releases say less: there, a missing word is the plain case.
_PLAIN = {
    "has_gate": (True, "its experts have no gate"),
    "has_bias": (False, "its experts have biases"),
    "is_transposed": (False, "its weights are stored transposed"),
    "is_concatenated": (True, "its gate and up rows are interleaved"),
    "has_post_expert_norm": (False, "a norm follows each of its experts"),
}
_SILU = {"torch.nn.modules.activation.SiLU", "transformers.activations.SiLUActivation"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
# Why the last call of a module went to transformers; modules whose last call was ours are absent.
_refused: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_log = logging.getLogger(__name__)


def register() -> None:
    """Make "moesaic" a name that transformers accepts as `experts_implementation`; again and again if you like.

    Raises:
        UnsupportedError: transformers is missing, or too old to accept other implementations (before 5.7).
    """
    usual_gate, tables = _load_interface()
    for table in tables:
        table.register(NAME, _build_forward(usual_gate, table))


def explain(model: nn.Module) -> dict[str, str]:
    """Tell by which code each experts module of a model computes, and why where it is not ours.

    Returns:
        For the name of each module that uses transformers' experts interface: "moesaic", or the reason for which
        transformers computes. A reason that lies in the module is known before any call; one that lies in the
        call (dtypes, devices, compilation) is that of the last call.
    """
    usual_gate, _ = _load_interface()
    return {name: _outcome(module, usual_gate) for name, module in model.named_modules() if _is_experts(module)}


def _load_interface() -> tuple[Function, list[Any]]:
    """Return transformers' usual gate, and its tables of implementations: of plain experts and of quantised ones."""
    hint = "pip install 'transformers>=5.7'"
    try:
        import transformers
    except ImportError as error:
        raise UnsupportedError(f"plugging moesaic into transformers: it cannot be imported ({error})", hint) from error
    try:
        from transformers.integrations.moe import _default_apply_gate

        # Where releases check the name of an implementation; those before 5.7 know only their own there.
        from transformers.modeling_utils import ALL_EXPERTS_FUNCTIONS, ALL_FP8_EXPERTS_FUNCTIONS
    except ImportError as error:
        text = f"plugging moesaic into transformers: release {transformers.__version__} accepts only its own experts"
        raise UnsupportedError(text, hint) from error
    return _default_apply_gate, [ALL_EXPERTS_FUNCTIONS, ALL_FP8_EXPERTS_FUNCTIONS]


def _build_forward(usual_gate: Function, table: Any) -> Function:
    """Return the function that transformers calls; the names of its arguments are part of the interface."""

    def forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        # First of all, since the rest cannot be traced.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            reason: str | None = "the call is compiled or traced"
        else:
            reason = _refuse_module(module, usual_gate)
        if reason is None:
            # Read once: a parametrised weight is computed at each look.
            call = _Call(hidden_states, top_k_index, top_k_weights, module.gate_up_proj, module.down_proj)
            reason = call.refuse()
            if reason is None:
                _refused.pop(module, None)
                return call.mix()
        _note(module, reason)
        theirs = "grouped_mm" if _is_aligned(module.down_proj) else "batched_mm"
        return table[theirs](module, hidden_states, top_k_index, top_k_weights)

    return forward


def _is_aligned(down: Tensor) -> bool:
    """Tell whether torch's grouped products take the experts: their rows must be multiples of 16 bytes."""
    return all(width * down.element_size() % 16 == 0 for width in down.shape[1:])


@dataclass(frozen=True)
class _Call:
    """One call of an experts module whose experts are of our kind."""

    hidden_TD: Tensor
    expert_ids_TK: Tensor
    weights_TK: Tensor
    gate_up: Tensor
    down: Tensor

    def refuse(self) -> str | None:
        """Say why this call is not ours."""
        hidden, gate_up, down = self.hidden_TD, self.gate_up, self.down
        # Subclasses are quantised, sharded or fake weights, or proxies of a tracer.
        for tensor in (hidden, self.weights_TK, gate_up, down):
            if type(tensor) not in (Tensor, nn.Parameter):
                return f"it was called with a {type(tensor).__name__}"
        if hidden.ndim != 2 or self.expert_ids_TK.ndim != 2 or self.weights_TK.shape != self.expert_ids_TK.shape:
            return "its hidden states, expert ids or routing weights were of unusual shapes"
        if not hidden.dtype == gate_up.dtype == down.dtype or hidden.dtype not in _DTYPES:
            return f"hidden states of {hidden.dtype} met weights of {gate_up.dtype} and {down.dtype}"
        if not hidden.device == gate_up.device == down.device:
            return f"hidden states on {hidden.device} met weights on {gate_up.device} and {down.device}"
        return _refuse_device(hidden.device, down)

    def mix(self) -> Tensor:
        """Compute the call."""
        num_tokens, num_experts = len(self.hidden_TD), len(self.gate_up)
        last = int(self.expert_ids_TK.max()) if self.expert_ids_TK.numel() else 0
        if last > num_experts:
            raise UnsupportedError(
                f"experts were called with the id {last}, but there are {num_experts}",
                f"ids run from 0 to {num_experts - 1}, and {num_experts} marks an expert of another rank",
            )
        if last < num_experts:
            ids_TK = self.expert_ids_TK.long()
            return mix_experts(self.hidden_TD, self.weights_TK, self.gate_up, self.down, ids_TK)
        # Expert parallelism gives the experts of other ranks the first id that does not exist.
        is_here_TK = self.expert_ids_TK != num_experts
        token_ids_N, expert_ids_N = is_here_TK.nonzero()[:, 0], self.expert_ids_TK[is_here_TK].long()
        permutation = group_by_expert(token_ids_N, expert_ids_N, num_tokens, num_experts)
        return mix_experts(self.hidden_TD, self.weights_TK[is_here_TK], self.gate_up, self.down, permutation)


def _is_experts(module: nn.Module) -> bool:
    return hasattr(module, "_apply_gate") and hasattr(module, "is_transposed")


def _outcome(module: Any, usual_gate: Function) -> str:
    chosen = module.config._experts_implementation
    if chosen != NAME:
        return f"the model is set to {chosen}"
    return _refuse_module(module, usual_gate) or _refused.get(module, NAME)


def _refuse_module(module: Any, usual_gate: Function) -> str | None:
    """Say why no call of a module can be ours."""
    for flag, (plain, reason) in _PLAIN.items():
        if getattr(module, flag, plain) != plain:
            return reason
    if getattr(module._apply_gate, "__func__", None) is not usual_gate:
        return "it applies its gate in a way of its own"
    return _refuse_activation(module.act_fn)


def _refuse_activation(function: Any) -> str | None:
    # By exact type: a subclass may compute anything.
    name = f"{type(function).__module__}.{type(function).__qualname__}"
    if function is not nn.functional.silu and name not in _SILU:
        return f"its activation is {getattr(function, '__name__', type(function).__name__)}"
    if any(getattr(function, kind, None) for kind in _HOOKS) or "forward" in vars(function):
        return "its activation has hooks or another forward"
    return None


def _refuse_device(device: torch.device, down: Tensor) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"moesaic has no kernel for {device.type}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "grouped products need compute capability 8.0"
    if device.type == "cuda" and not _is_aligned(down):
        return "grouped products need widths of multiples of 16 bytes"
    return None


# Runs at the time of tracing when the call is compiled, so that the reason is kept there too.
@torch.compiler.assume_constant_result
def _note(module: nn.Module, reason: str) -> None:
    _refused[module] = reason
    _log_once(type(module).__name__, reason)


@cache
def _log_once(kind: str, reason: str) -> None:
    _log.warning("%s is computed by transformers, not by moesaic: %s", kind, reason)
