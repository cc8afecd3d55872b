"""The shapes of mixtures that are measured."""

from dataclasses import dataclass

from moesaic.config.model import ModelConfig


@dataclass(frozen=True)
class Shape:
    """A case: tokens T, width D, expert width F, experts E, K of them chosen."""

    tokens: int
    width: int
    expert_width: int
    experts: int
    chosen: int

    @property
    def expert_size(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.width * self.expert_width

    def dims(self) -> dict[str, int]:
        """Return the numbers by their shape letters."""
        return {"T": self.tokens, "D": self.width, "F": self.expert_width, "E": self.experts, "K": self.chosen}

    def config(self, num_layers: int = 1, vocab_size: int = 8192) -> ModelConfig:
        """Return a Mixtral of this shape."""
        return ModelConfig(
            model_type="mixtral",
            vocab_size=vocab_size,
            hidden_size=self.width,
            num_hidden_layers=num_layers,
            num_attention_heads=self.width // 64,
            num_key_value_heads=max(1, self.width // 256),
            intermediate_size=self.expert_width,
            num_experts=self.experts,
            num_experts_per_tok=self.chosen,
            rms_norm_eps=1e-5,
        )
