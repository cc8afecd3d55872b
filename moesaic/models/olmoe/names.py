"""OLMoE's names: the width of an expert is called intermediate_size, and there are no dense layers."""

from moesaic.models.names import ATTENTION_BIASES, EXPERTS, QUERY_KEY_NORMS, ROUTER, SHARED_TENSORS
from moesaic.models.spec import ExpertNames

KEYS = {
    "num_experts": ("num_experts",),
    "num_experts_per_tok": ("num_experts_per_tok",),
    "norm_topk_prob": ("norm_topk_prob",),
    "router_aux_loss_coef": ("router_aux_loss_coef",),
    "clip_qkv": ("clip_qkv",),
    "attention_bias": ("attention_bias",),
    "attention_output_bias": ("attention_bias",),
}

TENSORS = SHARED_TENSORS | ATTENTION_BIASES | QUERY_KEY_NORMS | ROUTER
EXPERT_NAMES = ExpertNames(**EXPERTS)
