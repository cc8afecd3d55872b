"""The architecture of a model: one decoder that covers every supported family.

The fields carry Hugging Face's names. `model_type` names the family; a family fixes some fields (Qwen3 has
query/key norms, say), and 'moesaic' leaves all of them free.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from moesaic.config.section import Section

RouterKind = Literal["softmax", "sigmoid", "switch", "gshard", "expert_choice"]


class RopeScaling(Section):
    """How the rotary frequencies are stretched beyond the length a model was trained on."""

    rope_type: Literal["linear", "llama3", "yarn"] = Field(description="the published stretching rule")
    factor: float = Field(gt=0, description="by how much positions are stretched")
    original_max_position_embeddings: int | None = Field(
        None, gt=0, description="positions of the original training; required by llama3 and yarn"
    )
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: wavelengths longer than this are stretched")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: wavelengths shorter than this are kept")
    beta_fast: float = Field(32.0, gt=0, description="yarn: rotations above which a frequency is kept")
    beta_slow: float = Field(1.0, gt=0, description="yarn: rotations below which a frequency is stretched")
    attention_factor: float | None = Field(None, gt=0, description="yarn: scale of the rotation; None derives it")

    @model_validator(mode="after")
    def _rule_is_complete(self) -> Self:
        if self.rope_type != "linear" and self.original_max_position_embeddings is None:
            raise ValueError(f"rope_type '{self.rope_type}' needs original_max_position_embeddings")
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} is not below high_freq_factor {self.high_freq_factor}"
            )
        return self


class ModelConfig(Section):
    """Everything that decides the shape and the arithmetic of a model."""

    model_type: str = Field("moesaic", description="family: decides names and traits of an exported folder")

    vocab_size: int = Field(gt=0, description="entries of the embedding table, at least those of the tokenizer")
    hidden_size: int = Field(gt=0, description="model width")
    num_hidden_layers: int = Field(gt=0, description="decoder layers")
    num_attention_heads: int = Field(gt=0, description="query heads")
    num_key_value_heads: int | None = Field(None, gt=0, description="key/value heads; unset: as many as query heads")
    head_dim: int | None = Field(None, gt=0, description="channels per head; unset: hidden_size over heads")
    intermediate_size: int = Field(gt=0, description="width of the MLP of dense layers")
    max_position_embeddings: int = Field(2048, gt=0, description="longest sequence, in tokens")
    rms_norm_eps: float = Field(1e-6, gt=0, description="added to the mean square in every norm")
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = Field(None, description="stretching of the rotary frequencies")
    tie_word_embeddings: bool = Field(False, description="use the embedding table as output head too")
    attention_bias: bool = Field(False, description="biases on the query, key and value projections")
    attention_output_bias: bool = Field(False, description="bias on the output projection of attention")
    qk_norm: Literal["none", "head", "width"] = Field(
        "none", description="norm of queries and keys: none, over each head, or over all heads together"
    )
    clip_qkv: float | None = Field(None, gt=0, description="clamp queries, keys and values to this magnitude")
    sliding_window: int | None = Field(None, gt=0, description="attend to this many last positions; unset: all")
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = Field(
        None, description="attention of each layer; unset: sliding everywhere when sliding_window is set"
    )
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of initial weights")

    num_experts: int = Field(0, ge=0, description="experts of each MoE layer; 0: a dense model")
    num_experts_per_tok: int = Field(0, ge=0, description="experts chosen for each token")
    moe_intermediate_size: int | None = Field(None, gt=0, description="width of an expert; unset: intermediate_size")
    decoder_sparse_step: int = Field(1, gt=0, description="every how many layers an MoE layer stands")
    mlp_only_layers: list[int] = Field([], description="layers that stay dense")
    shared_expert_intermediate_size: int = Field(0, ge=0, description="width of the shared expert; 0: none")
    shared_expert_gate: bool = Field(False, description="scale the shared expert by a learned sigmoid gate")

    router: RouterKind = Field("softmax", description="how tokens and experts choose each other")
    pregated: bool = Field(
        False,
        description="route in each MoE layer by what the experts of the MoE layer before it read, so that the "
        "pages it will need are known a layer early; the first routes by its own input",
    )
    norm_topk_prob: bool = Field(True, description="let the weights of the chosen experts sum to one")
    n_group: int = Field(1, gt=0, description="groups of experts for group-limited choice; 1: off")
    topk_group: int = Field(1, gt=0, description="groups that a token may use")
    routed_scaling_factor: float = Field(1.0, gt=0, description="multiplies the combined expert output")
    capacity_factor: float | None = Field(
        None, gt=0, description="rows an expert takes in training, over its fair share; unset: every choice is kept"
    )
    eval_capacity_factor: float | None = Field(
        None,
        gt=0,
        description="the same in evaluation and generation, where texts then depend on their batch; "
        "unset: every choice is kept (expert_choice: as in training)",
    )
    router_jitter_noise: float = Field(0.0, ge=0, lt=1, description="input noise of the router, in training")
    gshard_random_second: bool = Field(True, description="gshard: drop weak second choices at random")
    router_aux_loss_coef: float = Field(0.01, ge=0, description="weight of the balance loss; 0: off")
    balance_loss_scope: Literal["batch", "sequence"] = Field(
        "batch", description="balance the load over the batch, or within every sequence"
    )
    router_z_loss_coef: float = Field(0.0, ge=0, description="weight of the router z-loss; 0: off")
    bias_update_speed: float = Field(0.001, ge=0, description="sigmoid: step of the loss-free balancing bias")

    bos_token_id: int | None = Field(None, ge=0, description="token that starts a text")
    eos_token_id: int | list[int] | None = Field(None, description="token or tokens that end a text")
    pad_token_id: int | None = Field(None, ge=0, description="token that fills batches")

    @property
    def head_channels(self) -> int:
        """Channels per head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def expert_width(self) -> int:
        """Hidden width of one routed expert."""
        return self.moe_intermediate_size or self.intermediate_size

    @property
    def experts_per_token(self) -> int:
        """Experts that a token chooses; fixed by the switch and gshard routers."""
        return {"switch": 1, "gshard": 2}.get(self.router, self.num_experts_per_tok)

    @property
    def eos_token_ids(self) -> list[int]:
        """Every token that ends a text."""
        ids = self.eos_token_id
        return [] if ids is None else list(ids) if isinstance(ids, list) else [ids]

    def is_moe_layer(self, layer: int) -> bool:
        """Tell whether a layer's MLP is a mixture of experts."""
        on_step = (layer + 1) % self.decoder_sparse_step == 0
        return self.num_experts > 0 and on_step and layer not in self.mlp_only_layers

    def window_of_layer(self, layer: int) -> int | None:
        """Return how many last positions a layer attends to, or None for all of them."""
        if self.layer_types is not None and self.layer_types[layer] == "full_attention":
            return None
        return self.sliding_window

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} "
                "num_attention_heads; change either, or give head_dim"
            )
        if self.head_channels % 2:
            raise ValueError(f"head_dim {self.head_channels} is odd; rotary embedding needs an even one")
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide into {self.kv_heads} "
                "num_key_value_heads"
            )
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} num_hidden_layers"
            )
        if self.layer_types is not None and "sliding_attention" in self.layer_types and not self.sliding_window:
            raise ValueError("layer_types asks for sliding_attention but sliding_window is not set")
        outside = [layer for layer in self.mlp_only_layers if not 0 <= layer < self.num_hidden_layers]
        if outside:
            raise ValueError(f"mlp_only_layers names layer {outside[0]} of {self.num_hidden_layers}")
        negative = [token for token in self.eos_token_ids if token < 0]
        if negative:
            raise ValueError(f"eos_token_id {negative[0]} is below 0")
        return self

    @model_validator(mode="after")
    def _router_fits_experts(self) -> Self:
        if self.num_experts == 0:
            return self
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok {self.experts_per_token} is not within 1..{self.num_experts} (num_experts)"
            )
        if self.router in ("switch", "gshard") and self.num_experts_per_tok not in (
            0,
            self.experts_per_token,
        ):
            raise ValueError(
                f"router '{self.router}' chooses {self.experts_per_token} experts, "
                f"num_experts_per_tok says {self.num_experts_per_tok}"
            )
        if self.num_experts % self.n_group:
            raise ValueError(f"num_experts {self.num_experts} does not divide into {self.n_group} n_group")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group {self.topk_group} exceeds n_group {self.n_group}")
        reachable = self.topk_group * self.num_experts // self.n_group
        if self.experts_per_token > reachable:
            raise ValueError(
                f"num_experts_per_tok {self.experts_per_token} exceeds the {reachable} experts of "
                f"topk_group {self.topk_group} groups"
            )
        if self.n_group > 1 and self.router not in ("softmax", "sigmoid"):
            raise ValueError(f"group-limited choice (n_group {self.n_group}) needs router softmax or sigmoid")
        if self.shared_expert_gate and not self.shared_expert_intermediate_size:
            raise ValueError("shared_expert_gate needs shared_expert_intermediate_size above 0")
        return self
