"""Qwen2-MoE's names."""

from moesaic.models.names import ATTENTION_BIASES, DENSE_MLP, EXPERTS, ROUTER, SHARED_EXPERT, SHARED_TENSORS
from moesaic.models.spec import ExpertNames

KEYS = {
    "num_experts": ("num_experts",),
    "num_experts_per_tok": ("num_experts_per_tok",),
    "moe_intermediate_size": ("moe_intermediate_size",),
    "shared_expert_intermediate_size": ("shared_expert_intermediate_size",),
    "decoder_sparse_step": ("decoder_sparse_step",),
    "mlp_only_layers": ("mlp_only_layers",),
    "norm_topk_prob": ("norm_topk_prob",),
    "router_aux_loss_coef": ("router_aux_loss_coef",),
    "attention_bias": ("qkv_bias",),
}

TENSORS = SHARED_TENSORS | ATTENTION_BIASES | DENSE_MLP | ROUTER | SHARED_EXPERT
EXPERT_NAMES = ExpertNames(**EXPERTS)
