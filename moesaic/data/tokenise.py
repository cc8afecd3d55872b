"""Tokenise one source once: documents in, shards and a manifest out.

Documents are encoded in batches, on all cores. A long document is cut into pieces for that, at line ends
where the next line starts without a blank: our own tokenizers cut there anyway, so the ids are the same.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moesaic.data.document import Document, Source
from moesaic.data.held_out import MIN_WHOLE_DOCUMENTS, HeldOutRule, choose_rule
from moesaic.data.shard import Ids, ShardWriter, choose_dtype
from moesaic.errors import DataError
from moesaic.tokenizer.tokenizer import Tokenizer

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "held_out")

BATCH_CHARACTERS = 4_000_000
PIECE_CHARACTERS = 500_000

AdvanceFn = Callable[[int], None]


def tokenise_source(source: Source, tokenizer: Tokenizer, held_out: float, folder: Path, advance_fn: AdvanceFn) -> None:
    """Write the shards, document starts, names and manifest of a source into an empty folder.

    Args:
        source: read once, in order.
        tokenizer: its end token closes every document, in either split.
        held_out: share of the text kept for evaluation.
        folder: exists.
        advance_fn: called with the source bytes done since the last call.

    Raises:
        DataError: the tokenizer has no end token, or a document cannot be read.
    """
    eos_id = _end_token(tokenizer)
    documents = source.documents()
    first = list(itertools.islice(documents, MIN_WHOLE_DOCUMENTS))
    rule = choose_rule(held_out, len(first) == MIN_WHOLE_DOCUMENTS)
    dtype = choose_dtype(tokenizer.vocab_size)
    with ExitStack() as stack:
        writers = {split: stack.enter_context(ShardWriter(folder, split, dtype)) for split in SPLITS}
        encoded = _encode_documents(itertools.chain(first, documents), tokenizer, advance_fn)
        for number, (document, ids) in enumerate(encoded):
            _append_document(writers, rule, number, document, ids, eos_id)
    manifest = {
        "format_version": FORMAT_VERSION,
        "source": source.name,
        "fingerprint": source.fingerprint(),
        "tokenizer_digest": tokenizer.digest,
        "vocab_size": tokenizer.vocab_size,
        "held_out": held_out,
        "held_out_whole_documents": rule.whole_documents,
        "dtype": dtype.str,
        "splits": {split: writer.finish() for split, writer in writers.items()},
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def cut_pieces(text: str, max_characters: int) -> Iterator[str]:
    """Yield a text in pieces of at most `max_characters`, cut before unindented lines where there are any."""
    start = 0
    while len(text) - start > max_characters:
        stop = _last_unindented_line(text, start, start + max_characters)
        yield text[start:stop]
        start = stop
    yield text[start:]


class _Piece(NamedTuple):
    """A stretch of a document; `num_bytes` of its source, `is_last` of its pieces."""

    document: Document
    text: str
    num_bytes: int
    is_last: bool


def _end_token(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise DataError(
            "the tokenizer has no end-of-text token, which must close every document",
            "name one as eos_token in tokenizer_config.json beside tokenizer.json",
        )
    return tokenizer.eos_id


def _append_document(
    writers: dict[str, ShardWriter], rule: HeldOutRule, number: int, document: Document, ids: Ids, eos_id: int
) -> None:
    num_kept = len(ids) - rule.num_held_out_tokens(number, len(ids))
    num_characters = len(document.text)
    # Only token positions are known, so the characters of a cut document are shared out in proportion.
    kept_characters = num_characters * num_kept // max(len(ids), 1)
    if num_kept > 0:
        writers["train"].append(document.name, np.append(ids[:num_kept], eos_id), kept_characters)
    if num_kept < len(ids):
        rest = num_characters - kept_characters
        writers["held_out"].append(document.name, np.append(ids[num_kept:], eos_id), rest)


def _encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, advance_fn: AdvanceFn
) -> Iterator[tuple[Document, Ids]]:
    parts: list[Ids] = []
    for batch in _batches(_pieces(documents)):
        encoded = tokenizer.encode_batch([piece.text for piece in batch])
        for piece, ids in zip(batch, encoded, strict=True):
            parts.append(np.array(ids, dtype=np.uint32))
            advance_fn(piece.num_bytes)
            if piece.is_last:
                yield piece.document, np.concatenate(parts)
                parts = []


def _pieces(documents: Iterable[Document]) -> Iterator[_Piece]:
    for document in documents:
        num_characters, cut = 0, 0
        for text in cut_pieces(document.text, PIECE_CHARACTERS):
            num_characters += len(text)
            reached = document.num_bytes * num_characters // max(len(document.text), 1)
            yield _Piece(document, text, reached - cut, num_characters == len(document.text))
            cut = reached


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    num_characters = 0
    for piece in pieces:
        batch.append(piece)
        num_characters += len(piece.text)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _last_unindented_line(text: str, start: int, stop: int) -> int:
    """Return where the last unindented line within (start, stop] begins, or `stop` where there is none."""
    line = text.rfind("\n", start, stop)
    while line > start:
        if not text[line + 1].isspace():
            return line + 1
        line = text.rfind("\n", start, line)
    return stop


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder.

    Raises:
        OSError, ValueError: it is missing, no JSON, or of another format version.
    """
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {manifest['format_version']} in place of {FORMAT_VERSION}")
    return manifest
