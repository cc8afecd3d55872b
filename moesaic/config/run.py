"""A whole recipe."""

from typing import Any, Self

from pydantic import Field, model_validator

from moesaic.config.data import DataConfig, TokenizerConfig
from moesaic.config.model import ModelConfig
from moesaic.config.optim import OptimConfig
from moesaic.config.parallel import ParallelConfig
from moesaic.config.section import Section
from moesaic.config.train import CheckpointConfig, TrainConfig


class RunConfig(Section):
    """The sections of a recipe, checked on their own and against each other."""

    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"data.sequence_length {self.data.sequence_length} exceeds "
                f"model.max_position_embeddings {self.model.max_position_embeddings}"
            )
        if self.tokenizer.vocab_size is not None and self.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"tokenizer.vocab_size {self.tokenizer.vocab_size} exceeds model.vocab_size {self.model.vocab_size}"
            )
        if self.warmup_steps >= self.train.steps and self.train.steps > 1:
            raise ValueError(f"optim.warmup_steps {self.warmup_steps} leaves nothing of train.steps {self.train.steps}")
        return self

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        given = self.optim.warmup_steps
        return given if given is not None else min(self.train.steps // 20, 1000)

    def changes_from(self, other: "RunConfig") -> dict[str, tuple[Any, Any]]:
        """Return the keys, as 'section.key', whose values differ, each with (value here, value in the other)."""
        mine, theirs = self.model_dump(), other.model_dump()
        return {
            f"{name}.{key}": (value, theirs[name][key])
            for name, section in mine.items()
            for key, value in section.items()
            if value != theirs[name][key]
        }
