"""Hugging Face's names that all families share, as data; {layer} stands for the layer index."""

SHARED_KEYS = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "num_hidden_layers": ("num_hidden_layers",),
    "num_attention_heads": ("num_attention_heads",),
    "num_key_value_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size",),
    "max_position_embeddings": ("max_position_embeddings",),
    "rms_norm_eps": ("rms_norm_eps",),
    "tie_word_embeddings": ("tie_word_embeddings",),
    "initializer_range": ("initializer_range",),
    "bos_token_id": ("bos_token_id",),
    "eos_token_id": ("eos_token_id",),
    "pad_token_id": ("pad_token_id",),
}

SHARED_TENSORS = {
    "decoder.embedding.weight": ("model.embed_tokens.weight",),
    "decoder.norm.weight": ("model.norm.weight",),
    "head.weight": ("lm_head.weight",),
    "decoder.layers.{layer}.attention_norm.weight": ("model.layers.{layer}.input_layernorm.weight",),
    "decoder.layers.{layer}.mlp_norm.weight": ("model.layers.{layer}.post_attention_layernorm.weight",),
    "decoder.layers.{layer}.attention.query.weight": ("model.layers.{layer}.self_attn.q_proj.weight",),
    "decoder.layers.{layer}.attention.key.weight": ("model.layers.{layer}.self_attn.k_proj.weight",),
    "decoder.layers.{layer}.attention.value.weight": ("model.layers.{layer}.self_attn.v_proj.weight",),
    "decoder.layers.{layer}.attention.output.weight": ("model.layers.{layer}.self_attn.o_proj.weight",),
}

ATTENTION_BIASES = {
    "decoder.layers.{layer}.attention.query.bias": ("model.layers.{layer}.self_attn.q_proj.bias",),
    "decoder.layers.{layer}.attention.key.bias": ("model.layers.{layer}.self_attn.k_proj.bias",),
    "decoder.layers.{layer}.attention.value.bias": ("model.layers.{layer}.self_attn.v_proj.bias",),
    "decoder.layers.{layer}.attention.output.bias": ("model.layers.{layer}.self_attn.o_proj.bias",),
}

QUERY_KEY_NORMS = {
    "decoder.layers.{layer}.attention.query_norm.weight": ("model.layers.{layer}.self_attn.q_norm.weight",),
    "decoder.layers.{layer}.attention.key_norm.weight": ("model.layers.{layer}.self_attn.k_norm.weight",),
}

# Ends of stored names that carry nothing: tables that every implementation computes itself.
COMPUTED = ("rotary_emb.inv_freq",)

DENSE_MLP = {
    "decoder.layers.{layer}.mlp.gate.weight": ("model.layers.{layer}.mlp.gate_proj.weight",),
    "decoder.layers.{layer}.mlp.up.weight": ("model.layers.{layer}.mlp.up_proj.weight",),
    "decoder.layers.{layer}.mlp.down.weight": ("model.layers.{layer}.mlp.down_proj.weight",),
}

ROUTER = {"decoder.layers.{layer}.moe.router.weight": ("model.layers.{layer}.mlp.gate.weight",)}

SHARED_EXPERT = {
    "decoder.layers.{layer}.moe.shared.gate.weight": ("model.layers.{layer}.mlp.shared_expert.gate_proj.weight",),
    "decoder.layers.{layer}.moe.shared.up.weight": ("model.layers.{layer}.mlp.shared_expert.up_proj.weight",),
    "decoder.layers.{layer}.moe.shared.down.weight": ("model.layers.{layer}.mlp.shared_expert.down_proj.weight",),
    "decoder.layers.{layer}.moe.shared_gate.weight": ("model.layers.{layer}.mlp.shared_expert_gate.weight",),
}

EXPERTS = {
    "gate": "model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    "up": "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    "down": "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
    "fused_gate_up": "model.layers.{layer}.mlp.experts.gate_up_proj",
    "fused_down": "model.layers.{layer}.mlp.experts.down_proj",
}
