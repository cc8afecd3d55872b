"""Published sizes of Qwen2-MoE."""

PRESETS = {
    "qwen1.5-moe-a2.7b": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 5632,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "max_position_embeddings": 8192,
        "rope_theta": 1e6,
        "attention_bias": True,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "router_aux_loss_coef": 0.001,
    },
}
