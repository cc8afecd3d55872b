"""From the data section of a recipe to tokens on disk, and the tokenizer that makes them.

    recipe ── open_source ──> documents ── tokenizer ──> cache/tokens/KEY/{manifest.json, *.bin, ...}

KEY hashes the source's content, the tokenizer and the held-out share. So each source is tokenised once, and a
changed source is another folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from moesaic.config.data import DataConfig, MixturePart
from moesaic.data.cache import cache_root, digest_of, open_or_fill
from moesaic.data.document import Source
from moesaic.data.shard import TokenSplit
from moesaic.data.source import open_sources
from moesaic.data.tokenise import FORMAT_VERSION, read_manifest, tokenise_source
from moesaic.errors import DataError
from moesaic.tokenizer.tokenizer import Tokenizer

ProgressFn = Callable[[int, int | None], None]


@dataclass(frozen=True)
class PreparedPart:
    """One source, tokenised.

    Attributes:
        source: as the recipe names it.
        weight: its share of the training sequences, relative to the other parts.
        key: changes with the source's content, the tokenizer and the held-out share.
        train: what is trained on, at least one sequence.
        held_out: what is evaluated on; None: not asked for, or shorter than one sequence.
        folder: where it lies, with its manifest.
    """

    source: str
    weight: float
    key: str
    train: TokenSplit
    held_out: TokenSplit | None
    folder: Path


@dataclass(frozen=True)
class PreparedData:
    """All sources of a recipe, tokenised.

    Attributes:
        parts: in the recipe's order.
        sequence_length: tokens of a sequence.
        respect_documents: labels never cross from one document to the next.
        vocab_size: of the tokenizer.
        notes: what the user should know, a line each.
    """

    parts: tuple[PreparedPart, ...]
    sequence_length: int
    respect_documents: bool
    vocab_size: int
    notes: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Hash of the tokens of all parts, whatever folder or machine they are on."""
        return digest_of([part.key for part in self.parts])

    @property
    def num_train_tokens(self) -> int:
        """Training tokens of all parts."""
        return sum(part.train.num_tokens for part in self.parts)

    @property
    def held_out(self) -> tuple[TokenSplit, ...] | None:
        """The held-out splits, or None where no part has one: then there is nothing to evaluate on."""
        splits = tuple(part.held_out for part in self.parts if part.held_out is not None)
        return splits or None


def prepare(config: DataConfig, tokenizer: Tokenizer, progress: ProgressFn | None = None) -> PreparedData:
    """Tokenise every source of a recipe that is not yet tokenised, and open the result.

    Processes that call this at once all get the same; each of them does the work, so in a run of many, one
    should call it before the others.

    Args:
        config: the data section.
        tokenizer: must have an end token.
        progress: called with the source bytes done and those to do (None: not known).

    Raises:
        DataError: a source cannot be read, or has fewer training tokens than one sequence needs.
        ConfigError: a source's name or field is not accepted, or a library is missing.
    """
    sources = open_sources(config)
    sizes = [source.num_bytes for source in sources]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    report = _Report(progress, total)
    parts, notes = [], []
    for part, source in zip(config.parts, sources, strict=True):
        prepared = _prepare_part(part, source, config, tokenizer, report)
        note = _note_on_held_out(prepared, config)
        notes += [note] if note else []
        parts.append(prepared)
    return PreparedData(
        parts=tuple(parts),
        sequence_length=config.sequence_length,
        respect_documents=config.respect_documents,
        vocab_size=tokenizer.vocab_size,
        notes=tuple(notes),
    )


class _Report:
    """Adds up the bytes that were done for the caller's progress display."""

    def __init__(self, progress: ProgressFn | None, total: int | None) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _prepare_part(
    part: MixturePart, source: Source, config: DataConfig, tokenizer: Tokenizer, report: _Report
) -> PreparedPart:
    key = digest_of([FORMAT_VERSION, source.fingerprint(), tokenizer.digest, tokenizer.eos_id, config.held_out])
    folder = cache_root(config.cache) / "tokens" / key
    is_filled = False

    def fill(empty: Path) -> None:
        nonlocal is_filled
        is_filled = True
        tokenise_source(source, tokenizer, config.held_out, empty, report.advance)

    train, held_out = open_or_fill(folder, _open_splits, fill)
    if not is_filled:
        report.advance(source.num_bytes or 0)
    needed = config.sequence_length + 1
    if train.num_tokens < needed:
        raise DataError(
            f"source '{part.source}' gives {train.num_tokens} training tokens; "
            f"one sequence of data.sequence_length {config.sequence_length} needs {needed}",
            "give more text, or set data.sequence_length or data.held_out lower",
        )
    long_enough = held_out.num_tokens >= needed
    return PreparedPart(part.source, part.weight, key, train, held_out if long_enough else None, folder)


def _open_splits(folder: Path) -> tuple[TokenSplit, TokenSplit]:
    manifest = read_manifest(folder)
    dtype, splits = np.dtype(manifest["dtype"]), manifest["splits"]
    return (
        TokenSplit(folder, "train", dtype, splits["train"]),
        TokenSplit(folder, "held_out", dtype, splits["held_out"]),
    )


def _note_on_held_out(part: PreparedPart, config: DataConfig) -> str | None:
    if part.held_out is not None or config.held_out == 0:
        return None
    num_tokens = read_manifest(part.folder)["splits"]["held_out"]["tokens"]
    return (
        f"source '{part.source}' is not evaluated: its held-out part has {num_tokens} tokens, "
        f"one sequence needs {config.sequence_length + 1}"
    )
