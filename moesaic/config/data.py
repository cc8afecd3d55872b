"""Where text comes from, how it is cut, and which tokenizer reads it."""

from typing import Self

from pydantic import Field, model_validator

from moesaic.config.section import Section


class MixturePart(Section):
    """One source of a mixture."""

    source: str = Field(min_length=1, description="as data.source")
    weight: float = Field(1.0, gt=0, description="share of the sequences drawn from this source, relative")
    field: str | None = Field(None, min_length=1, description="as data.field, which holds where this is unset")


class DataConfig(Section):
    """The text that a run learns from."""

    source: str | None = Field(
        None,
        description="a file, a folder, 'python-stdlib' (this Python's library), "
        "or a hub dataset: 'hf:NAME[#SUBSET][:SPLIT][@REVISION]'",
    )
    mixture: list[MixturePart] = Field([], description="several weighted sources, in place of source")
    field: str | None = Field(
        None, min_length=1, description="key of the text in .jsonl, parquet and hub rows; unset: 'text'"
    )
    include: list[str] = Field(
        [
            "*.txt",
            "*.md",
            "*.rst",
            "*.py",
            "*.c",
            "*.h",
            "*.cc",
            "*.cpp",
            "*.rs",
            "*.go",
            "*.java",
            "*.js",
            "*.ts",
        ],
        description="which files of a folder are read, as name patterns; .jsonl and .parquet files as rows",
    )
    sequence_length: int = Field(1024, gt=1, description="tokens of a training sequence")
    held_out: float = Field(0.02, ge=0, lt=1, description="share of the text kept for evaluation; 0: none")
    respect_documents: bool = Field(False, description="keep attention within a document of a packed sequence")
    seed: int = Field(0, ge=0, description="order of the training sequences")
    cache: str | None = Field(
        None, min_length=1, description="folder of tokenised text; unset: a folder of the user's cache"
    )

    @property
    def parts(self) -> list[MixturePart]:
        """The sources with their weights and fields, a single source as a mixture of one."""
        parts = self.mixture or [MixturePart(source=self.source or "", weight=1.0)]
        return [part.model_copy(update={"field": part.field or self.field}) for part in parts]

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.source) == bool(self.mixture):
            raise ValueError("give either source or mixture")
        return self


class TokenizerConfig(Section):
    """A given tokenizer, or how to train one."""

    path: str | None = Field(
        None, min_length=1, description="a tokenizer.json or a folder with one; unset: train BPE on the data"
    )
    vocab_size: int | None = Field(
        None, gt=256, description="entries of a trained tokenizer; unset: the model's vocab_size"
    )
