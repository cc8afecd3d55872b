"""DeepSpeed-MoE, as `ranks_worker.py` has it computed, by the Python of another environment, which has no moesaic.

`way` of the request is 'dropless' or 'capacity' (experts take at most 1.25 times the mean load) for the classic layer,
`deepspeed.moe.layer.MoE`, or 'auto' for the one that AutoEP puts in place of a Hugging Face model's. The language model
is the same plain one in each case, with such a layer in place of each mixture.
"""

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.module_inject.auto_ep_config import AutoEPConfig, MoELayerSpec
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from deepspeed.moe.layer import MoE
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn import functional

_CAPACITY_FACTOR = 1.25
_BALANCE = 0.01


def connect() -> str:
    """Bring the ranks together."""
    deepspeed.init_distributed("gloo")
    return deepspeed.__version__


def build(tensors: Any, request: dict[str, Any], rank: int, size: int) -> Callable[[], Tensor]:
    """Return the step."""
    return (_build_model if request["layers"] else _build_layer)(tensors, request, rank, size)


def _build_layer(tensors: Any, request: dict[str, Any], rank: int, size: int) -> Callable[[], Tensor]:
    layer = _Mixture(tensors, ("router", "gate_up", "down"), request, rank, size)
    hidden_TD = tensors.read(f"hidden.{rank}").requires_grad_()
    grad_TD = tensors.read(f"grad.{rank}")

    def step() -> Tensor:
        layer.zero_grad(set_to_none=True)
        hidden_TD.grad = None
        result_BSD, balance = layer(hidden_TD.unsqueeze(0))
        ((result_BSD[0] * grad_TD).sum() + _BALANCE * balance).backward()
        return result_BSD[0]

    return step


def _build_model(tensors: Any, request: dict[str, Any], rank: int, size: int) -> Callable[[], Tensor]:
    model = _Model(tensors, request, rank, size)
    ids_BS, labels_BS = (tensors.read(f"{name}.{rank}") for name in ("ids", "labels"))
    shared = [parameter for parameter in model.parameters() if getattr(parameter, "allreduce", True)]

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        logits_BSV, balance = model(ids_BS)
        loss = functional.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten()) / size
        (loss + _BALANCE * balance / size).backward()
        # As DeepSpeed's engine does: one flat copy, summed, and copied back.
        grads = [parameter.grad for parameter in shared if parameter.grad is not None]
        for dtype in dict.fromkeys(grad.dtype for grad in grads):
            alike = [grad for grad in grads if grad.dtype == dtype]
            flat = _flatten_dense_tensors(alike)
            dist.all_reduce(flat)
            for grad, summed in zip(alike, _unflatten_dense_tensors(flat, alike), strict=True):
                grad.copy_(summed)
        return loss.detach().reshape(1, 1)

    return step


class _Expert(nn.Module):
    """A gated MLP with one product for gate and up, as ours has it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(0))
        self.down = nn.Parameter(torch.empty(0))

    def forward(self, rows: Tensor) -> Tensor:
        gate, up = functional.linear(rows, self.gate_up).chunk(2, dim=-1)
        return functional.linear(functional.silu(gate) * up, self.down)


class _Mixture(nn.Module):
    """DeepSpeed's layer with given weights: names of the router's, of gate and up, and of down."""

    def __init__(
        self, tensors: Any, names: tuple[str, str, str], request: dict[str, Any], rank: int, size: int
    ) -> None:
        super().__init__()
        router, gate_up, down = names
        num_experts = tensors.shape(down)[0]
        own = range(rank * num_experts // size, (rank + 1) * num_experts // size)
        self.is_auto = request["way"] == "auto"
        build = self._build_auto if self.is_auto else self._build_classic
        self.layer = build(tensors, names, request, rank, size)
        self.layer.set_deepspeed_parallelism()
        if self.is_auto:
            experts, half = self.layer.experts, tensors.shape(gate_up)[1] // 2
            with torch.no_grad():
                for index, expert in enumerate(own):
                    both = tensors.read(gate_up, expert)
                    experts.w1[index], experts.w3[index] = both[:half], both[half:]
                    experts.w2[index] = tensors.read(down, expert)
        else:
            for index, expert in enumerate(self.layer.deepspeed_moe.experts.deepspeed_experts):
                for name, stored in (("gate_up", gate_up), ("down", down)):
                    old, new = getattr(expert, name), nn.Parameter(tensors.read(stored, own[index]))
                    for mark in ("allreduce", "group_name"):  # by which it knows an expert's
                        setattr(new, mark, getattr(old, mark))
                    setattr(expert, name, new)
            self.layer.deepspeed_moe.gate.wg.weight = nn.Parameter(tensors.read(router).float())

    @staticmethod
    def _build_classic(tensors: Any, names: tuple[str, str, str], request: dict[str, Any], rank: int, size: int) -> Any:
        num_experts, width, _ = tensors.shape(names[2])
        return MoE(
            hidden_size=width,
            expert=_Expert(),
            num_experts=num_experts,
            ep_size=size,
            k=request["chosen"],
            drop_tokens=request["way"] == "capacity",
            capacity_factor=_CAPACITY_FACTOR,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )

    @staticmethod
    def _build_auto(tensors: Any, names: tuple[str, str, str], request: dict[str, Any], rank: int, size: int) -> Any:
        num_experts, width, expert_width = tensors.shape(names[2])
        dtype = tensors.read(names[2], 0).dtype
        spec = MoELayerSpec(
            moe_module_name="mixture",
            model_family="mixtral",
            router_name="gate",
            experts_name="experts",
            expert_storage="fused_3d",
            expert_w1_name="gate_up",
            expert_w2_name="down",
            expert_w3_name=None,
            num_experts=num_experts,
            top_k=request["chosen"],
            hidden_size=width,
            ffn_hidden_size=expert_width,
            score_func="softmax",
            score_apply="post",
            route_norm=True,
            gate_bias=False,
            return_router_logits=False,
            router_logits_capture_target="none",
            router_logits_capture_index=None,
            router_logits_capture_layer_name=None,
            has_shared_experts=False,
            shared_experts_name="",
        )
        source = nn.Module()
        source.gate = nn.Linear(width, num_experts, bias=False, dtype=dtype)
        source.gate.weight = nn.Parameter(tensors.read(names[0]).to(dtype))
        source.experts = nn.Module()
        # Without values, which take no memory; the rank's own follow.
        source.experts.gate_up = nn.Parameter(torch.empty(num_experts, 2 * expert_width, width, dtype=dtype))
        source.experts.down = nn.Parameter(torch.empty(num_experts, width, expert_width, dtype=dtype))
        # Its grouped product runs on a GPU only.
        return AutoEPMoELayer(
            spec, source, size, rank, AutoEPConfig(enabled=True, autoep_size=size, use_grouped_mm=False)
        )

    def forward(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the balance loss, which AutoEP's layer leaves to the model: zero."""
        if self.is_auto:
            return self.layer(hidden_BSD), hidden_BSD.new_zeros(())
        result_BSD, balance, _ = self.layer(hidden_BSD)
        return result_BSD, balance


class _Model(nn.Module):
    """A Mixtral in plain torch."""

    def __init__(self, tensors: Any, request: dict[str, Any], rank: int, size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(tensors.read("decoder.embedding.weight"))
        self.layers = nn.ModuleList(_Layer(tensors, index, request, rank, size) for index in range(request["layers"]))
        self.norm = nn.Parameter(tensors.read("decoder.norm.weight"))
        self.head = nn.Parameter(tensors.read("head.weight"))

    def forward(self, ids_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the mean balance loss."""
        hidden = functional.embedding(ids_BS, self.embedding)
        half = torch.arange(0, _CHANNELS, 2) / _CHANNELS
        angles = torch.outer(torch.arange(ids_BS.shape[1]).float(), 10_000.0**-half).repeat(1, 2)
        rotation = angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)
        losses = []
        for layer in self.layers:
            hidden, balance = layer(hidden, rotation)
            losses.append(balance)
        return functional.linear(_norm(hidden, self.norm), self.head), torch.stack(losses).mean()


_CHANNELS = 64


class _Layer(nn.Module):
    def __init__(self, tensors: Any, index: int, request: dict[str, Any], rank: int, size: int) -> None:
        super().__init__()
        prefix = f"decoder.layers.{index}."
        self.attention_norm = nn.Parameter(tensors.read(f"{prefix}attention_norm.weight"))
        self.projections = nn.ParameterList(
            tensors.read(f"{prefix}attention.{name}.weight") for name in ("query", "key", "value", "output")
        )
        self.mlp_norm = nn.Parameter(tensors.read(f"{prefix}mlp_norm.weight"))
        names = f"{prefix}moe.router.weight", f"{prefix}moe.experts.gate_up", f"{prefix}moe.experts.down"
        self.mixture = _Mixture(tensors, names, request, rank, size)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        *weights, output = self.projections
        normed = _norm(hidden, self.attention_norm)
        query, key, value = (
            functional.linear(normed, weight).unflatten(-1, (-1, _CHANNELS)).transpose(1, 2) for weight in weights
        )
        mixed = functional.scaled_dot_product_attention(
            _rotate(query, rotation), _rotate(key, rotation), value, is_causal=True, enable_gqa=True
        )
        hidden = hidden + functional.linear(mixed.transpose(1, 2).flatten(2), output)
        result, balance = self.mixture(_norm(hidden, self.mlp_norm))
        return hidden + result, balance


def _norm(hidden: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(hidden, weight.shape, weight, 1e-5)


def _rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * rotation[0] + torch.cat([-second, first], dim=-1) * rotation[1]
