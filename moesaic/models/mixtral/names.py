"""Mixtral's names: the width of an expert is called intermediate_size, and there are no dense layers."""

from moesaic.models.names import EXPERTS, SHARED_TENSORS
from moesaic.models.spec import ExpertNames

KEYS = {
    "num_experts": ("num_local_experts",),
    "num_experts_per_tok": ("num_experts_per_tok",),
    "router_aux_loss_coef": ("router_aux_loss_coef",),
    "router_jitter_noise": ("router_jitter_noise",),
}

TENSORS = SHARED_TENSORS | {
    "decoder.layers.{layer}.moe.router.weight": (
        "model.layers.{layer}.block_sparse_moe.gate.weight",
        "model.layers.{layer}.mlp.gate.weight",
    ),
}

EXPERT_NAMES = ExpertNames(
    gate="model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
    up="model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
    down="model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
    fused_gate_up=EXPERTS["fused_gate_up"],
    fused_down=EXPERTS["fused_down"],
)
