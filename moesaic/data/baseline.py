"""Losses that a model must beat: what counting alone reaches on the held-out text.

Both count the training tokens of all parts and predict the labels of the batches they are given: those that a model
is evaluated on, so that the numbers may stand side by side. The counting is done on arrays: a pair of tokens (h, w)
is the number h * V + w.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from moesaic.data.loader import Batch
from moesaic.data.prepare import PreparedData
from moesaic.errors import DataError
from moesaic.ops.loss import IGNORED_LABEL

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Sorting this many pairs at once takes about 100 MB.
_CHUNK_TOKENS = 2**22


def unigram_loss(prepared: PreparedData, held_out: Iterable[Batch]) -> float:
    """Return the held-out cross-entropy of token frequencies, in nats per token.

    p(w) = (c(w) + 1) / (N + V) with c(w) the training count of token w, N their sum and V the vocabulary
    (add-one smoothing: Laplace's rule of succession).

    Raises:
        DataError: there are no batches.
    """
    log_probability_V = np.log(_unigram(prepared))
    total, num_labels = 0.0, 0
    for _, labels in _held_out_pairs(held_out):
        total -= float(log_probability_V[labels].sum())
        num_labels += len(labels)
    return _mean(total, num_labels)


def bigram_loss(prepared: PreparedData, held_out: Iterable[Batch]) -> float:
    """Return the held-out cross-entropy of frequencies after the previous token, in nats per token.

    p(w | h) = (c(h, w) + t(h) p(w)) / (c(h) + t(h)) with c the training counts, t(h) the number of different
    tokens seen after h, and p(w) the unigram above, which alone serves where h was never seen. Source: Witten
    and Bell (1991), "The zero-frequency problem", method C, in the interpolated form of Chen and Goodman
    (1998), "An empirical study of smoothing techniques for language modeling".

    Memory: 16 bytes for each different pair of the training text, and as much again while counting.

    Raises:
        DataError: there are no batches.
    """
    unigram_V = _unigram(prepared)
    vocab_size = len(unigram_V)
    pairs, counts = _count_pairs(_pair_codes(_training_pairs(prepared), vocab_size))
    before = pairs // vocab_size
    count_V = np.bincount(before, weights=counts, minlength=vocab_size)
    kinds_V = np.bincount(before, minlength=vocab_size).astype(np.float64)
    total, num_labels = 0.0, 0
    for context, labels in _held_out_pairs(held_out):
        seen = _look_up(pairs, counts, context * vocab_size + labels)
        kinds, count = kinds_V[context], count_V[context]
        # A context that was never seen has no weight of its own: any positive number leaves the unigram.
        kinds = np.where(count == 0, 1.0, kinds)
        total -= float(np.log((seen + kinds * unigram_V[labels]) / (count + kinds)).sum())
        num_labels += len(labels)
    return _mean(total, num_labels)


def _mean(total: float, num_labels: int) -> float:
    if num_labels == 0:
        raise DataError(
            "there is no held-out text to measure a baseline on", "set data.held_out higher, or give more text"
        )
    return total / num_labels


def _unigram(prepared: PreparedData) -> Floats:
    count_V = np.zeros(prepared.vocab_size, dtype=np.int64)
    for part in prepared.parts:
        for start in range(0, part.train.num_tokens, _CHUNK_TOKENS):
            count_V += np.bincount(part.train.read(start, start + _CHUNK_TOKENS), minlength=prepared.vocab_size)
    return (count_V + 1) / (count_V.sum() + prepared.vocab_size)


def _held_out_pairs(batches: Iterable[Batch]) -> Iterator[tuple[Integers, Integers]]:
    """Yield (context, label) of all labels, batch by batch."""
    for batch in batches:
        labels = batch.labels_BS.numpy()
        keep = labels != IGNORED_LABEL
        yield batch.ids_BS.numpy()[keep], labels[keep]


def _training_pairs(prepared: PreparedData) -> Iterator[tuple[Integers, Integers]]:
    """Yield (context, label) of all training tokens but the first of each part, or of each document."""
    for part in prepared.parts:
        for start in range(0, part.train.num_tokens - 1, _CHUNK_TOKENS):
            stop = min(start + _CHUNK_TOKENS, part.train.num_tokens - 1)
            tokens = part.train.read(start, stop + 1)
            keep = np.ones(stop - start, dtype=bool)
            if prepared.respect_documents:
                first, last = np.searchsorted(part.train.document_starts, [start + 1, stop + 1])
                keep[part.train.document_starts[first:last] - start - 1] = False
            yield tokens[:-1][keep], tokens[1:][keep]


def _pair_codes(pairs: Iterable[tuple[Integers, Integers]], vocab_size: int) -> Iterator[Integers]:
    for context, labels in pairs:
        yield context * vocab_size + labels


def _count_pairs(chunks: Iterable[Integers]) -> tuple[Integers, Integers]:
    """Return the different codes, ascending, and how often each occurs."""
    codes, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for chunk in chunks:
        new_codes, new_counts = np.unique(chunk, return_counts=True)
        codes, owner = np.unique(np.concatenate([codes, new_codes]), return_inverse=True)
        merged = np.bincount(owner, weights=np.concatenate([counts, new_counts]))
        counts = merged.astype(np.int64)
    return codes, counts


def _look_up(codes: Integers, counts: Integers, wanted: Integers) -> Integers:
    """Return the count of each wanted code, 0 for one that does not occur."""
    place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
    return np.where(codes[place] == wanted, counts[place], 0)
