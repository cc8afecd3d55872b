"""The course of a run: steps, batches, precision, evaluation and checkpoints."""

from typing import Literal, Self

from pydantic import Field, model_validator

from moesaic.config.section import Section


class TrainConfig(Section):
    """How long, how much at a time, and where the results go."""

    out: str = Field(min_length=1, description="the run folder")
    steps: int = Field(gt=0, description="optimizer steps of the whole run")
    batch_size: int = Field(gt=0, description="sequences of a step, over all ranks")
    micro_batch_size: int | None = Field(
        None, gt=0, description="sequences computed at a time, over all ranks, gradients accumulated; unset: batch_size"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="initial weights and every random choice of the routers")
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="what computes; cuda: a GPU, and with several ranks one for each on its machine"
    )
    precision: Literal["bfloat16", "float32"] | None = Field(
        None,
        description="dtype of the computation; weights and moments stay float32; "
        "unset: bfloat16 on a GPU and where the CPU has instructions for it",
    )
    recompute: bool = Field(False, description="recompute activations in the backward pass: less memory, slower")
    evaluate_every: int | None = Field(None, gt=0, description="steps between evaluations; unset: a tenth of the run")
    evaluate_batches: int = Field(16, gt=0, description="batches of an evaluation")
    init_from: str | None = Field(
        None,
        description="a folder or hub id whose weights start the run; gives model and tokenizer where not set",
    )
    threads: int | None = Field(None, gt=0, le=1024, description="threads of the CPU kernels; unset: as torch chooses")
    tensorboard: bool = Field(False, description="also write TensorBoard events (extra 'track')")

    @property
    def micro_batch(self) -> int:
        """Sequences computed at a time."""
        return self.micro_batch_size or self.batch_size

    @property
    def evaluation_interval(self) -> int:
        """Steps between evaluations."""
        return self.evaluate_every or max(1, self.steps // 10)

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide into micro_batch_size {self.micro_batch_size}"
            )
        return self


class CheckpointConfig(Section):
    """When a run saves, and what it keeps."""

    every: int = Field(100, gt=0, description="steps between checkpoints; the last step is always saved")
    asynchronous: bool = Field(
        True,
        description="write while training goes on, from a copy in memory of what each process writes; false: without "
        "the copy, and training waits",
    )
    keep_last: int = Field(2, gt=0, description="most recent checkpoints to keep")
    keep_best: bool = Field(True, description="also keep the checkpoint with the lowest held-out loss")
