"""The optimizer, its schedule and its limits."""

from typing import Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from moesaic.config.section import Section


class OptimConfig(Section):
    """How parameters follow their gradients."""

    kind: Literal["adamw", "lion"] = Field("adamw", description="adamw, or lion (smaller rate, one moment)")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] | None = Field(
        None, strict=False, description="decay of the moments; unset: 0.9 and 0.95 for adamw, 0.9 and 0.99 for lion"
    )
    eps: float = Field(1e-8, gt=0, description="adamw: added to the root of the second moment")
    weight_decay: float = Field(0.1, ge=0, description="decay of matrices; norms and biases are not decayed")
    clip_norm: float | None = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine", description="shape after warm-up; wsd: stable, then a linear decay"
    )
    warmup_steps: int | None = Field(None, ge=0, description="steps of linear warm-up; unset: 5 % of the run")
    decay_share: float = Field(
        0.2, gt=0, le=1, description="wsd: share of the run that decays, at most all after warm-up"
    )
    min_learning_rate: float | None = Field(None, ge=0, description="rate at the end; unset: a tenth of the peak")

    # A TOML file cannot say None, so there it is zero.
    @field_validator("clip_norm")
    @classmethod
    def _read_zero_as_none(cls, value: float | None) -> float | None:
        return value or None

    @field_serializer("clip_norm")
    def _write_none_as_zero(self, value: float | None) -> float:
        return value or 0.0

    @model_validator(mode="after")
    def _ranges_agree(self) -> Self:
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)} must lie within [0, 1)")
        if self.min_learning_rate is not None and self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate {self.min_learning_rate} exceeds learning_rate {self.learning_rate}")
        return self
