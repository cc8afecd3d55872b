"""Sequences cut from the stream of tokens, each token once a label.

Sequence i reads S + 1 tokens from position i * S; the last is only a label, and the next sequence's input:

    stream     a b c ∎ d e f ∎ g            ∎ ends a document
    sequence 0 a b c ∎      labels  b c ∎ d
    sequence 1         d e f ∎      labels e f ∎ g

Where documents are respected, the label of ∎ (the first token of another document) is ignored, positions
start again in each document, and attention may use the document numbers to stay within one.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moesaic.data.shard import TokenSplit
from moesaic.ops.loss import IGNORED_LABEL

Integers = npt.NDArray[np.int64]


class PackedSplit:
    """A split as numbered sequences.

    Attributes:
        split: the tokens.
        sequence_length: tokens of a sequence, S.
        num_sequences: full sequences; fewer than S tokens at the end of the stream are no label.
    """

    def __init__(self, split: TokenSplit, sequence_length: int, respect_documents: bool) -> None:
        """Pack a split; `respect_documents` ignores the labels that cross from one document to the next."""
        self.split = split
        self.sequence_length = sequence_length
        self.num_sequences = max(split.num_tokens - 1, 0) // sequence_length
        self._respect_documents = respect_documents

    def sequence(self, index: int) -> tuple[Integers, Integers, Integers]:
        """Return one sequence.

        Returns:
            ids_S: the tokens.
            labels_S: the token after each, or IGNORED_LABEL.
            document_ids_S: number of each token's document, from 0 within the sequence.
        """
        assert 0 <= index < self.num_sequences, f"sequence {index} of {self.num_sequences}"
        start = index * self.sequence_length
        window = self.split.read(start, start + self.sequence_length + 1)
        starts = self.split.document_starts
        documents = np.searchsorted(starts, np.arange(start, start + len(window)), side="right") - 1
        labels_S = window[1:].copy()
        if self._respect_documents:
            labels_S[documents[1:] != documents[:-1]] = IGNORED_LABEL
        return window[:-1], labels_S, documents[:-1] - documents[0]

    def documents_of(self, index: int) -> range:
        """Return the numbers of the documents that a sequence takes tokens from."""
        start = index * self.sequence_length
        ends = np.array([start, start + self.sequence_length - 1])
        first, last = np.searchsorted(self.split.document_starts, ends, side="right") - 1
        return range(int(first), int(last) + 1)


def positions_in_documents(document_ids_S: Integers) -> Integers:
    """Return the position of each token of a sequence, counted from its document's first token there."""
    index_S = np.arange(len(document_ids_S))
    is_first_S = np.ones(len(document_ids_S), dtype=bool)
    is_first_S[1:] = document_ids_S[1:] != document_ids_S[:-1]
    return index_S - np.maximum.accumulate(np.where(is_first_S, index_S, 0))


def describe_documents(packed: PackedSplit, indices: Sequence[int], max_names: int = 4) -> str:
    """Return the names of the documents in some sequences, the first few of them."""
    numbers = list(dict.fromkeys(number for index in indices for number in packed.documents_of(index)))
    names = [packed.split.document_name(number) for number in numbers[:max_names]]
    return ", ".join(names + (["..."] if len(numbers) > max_names else []))
