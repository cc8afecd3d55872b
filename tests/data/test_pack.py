from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data.pack import PackedSplit, describe_documents, positions_in_documents
from moesaic.data.shard import ShardWriter, TokenSplit, choose_dtype
from moesaic.ops.loss import IGNORED_LABEL

DTYPE = choose_dtype(1000)


def split_of(folder: Path, lengths: list[int], shard_tokens: int = 5) -> TokenSplit:
    """Return a split whose token at position p is p, in documents of the given lengths."""
    with ShardWriter(folder, "train", DTYPE, shard_tokens) as writer:
        start = 0
        for number, length in enumerate(lengths):
            writer.append(f"d{number}", range(start, start + length), 1)
            start += length
        entry = writer.finish()
    return TokenSplit(folder, "train", DTYPE, entry)


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, sequence_length=st.integers(2, 9), respect=st.booleans())
def test_packing_makes_each_token_a_label_once_when_documents_are_any(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], sequence_length: int, respect: bool
) -> None:
    packed = PackedSplit(split_of(tmp_path_factory.mktemp("pack"), lengths), sequence_length, respect)
    rows = [packed.sequence(index) for index in range(packed.num_sequences)]
    labels = [int(label) for _, labels_S, _ in rows for label in labels_S if label != IGNORED_LABEL]
    covered = set(range(1, packed.num_sequences * sequence_length + 1))
    starts = set(np.cumsum([0, *lengths]).tolist())
    assert labels == sorted(covered - starts if respect else covered)
    assert sum(lengths) - 1 - len(covered) < sequence_length
    for ids_S, labels_S, _ in rows:
        kept = labels_S != IGNORED_LABEL
        assert (labels_S[kept] == ids_S[kept] + 1).all()


@settings(max_examples=80, deadline=None)
@given(lengths=LENGTHS, sequence_length=st.integers(2, 9))
def test_packing_numbers_documents_and_positions_when_documents_are_any(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], sequence_length: int
) -> None:
    packed = PackedSplit(split_of(tmp_path_factory.mktemp("pack"), lengths), sequence_length, True)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    for index in range(packed.num_sequences):
        start = index * sequence_length
        expected = owners[start : start + sequence_length]
        document_ids_S = packed.sequence(index)[2]
        assert document_ids_S.tolist() == (expected - expected[0]).tolist()
        assert list(packed.documents_of(index)) == sorted(set(expected.tolist()))
        positions = [list(expected[:place]).count(owner) for place, owner in enumerate(expected)]
        assert positions_in_documents(document_ids_S).tolist() == positions


def test_sequence_ignores_only_the_label_after_an_end_when_documents_are_respected(tmp_path: Path) -> None:
    packed = PackedSplit(split_of(tmp_path, [3, 4, 3]), 8, respect_documents=True)
    ids_S, labels_S, document_ids_S = packed.sequence(0)
    assert ids_S.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert labels_S.tolist() == [1, 2, IGNORED_LABEL, 4, 5, 6, IGNORED_LABEL, 8]
    assert document_ids_S.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]


def test_sequence_ignores_its_last_label_when_a_document_starts_right_after(tmp_path: Path) -> None:
    packed = PackedSplit(split_of(tmp_path, [4, 4]), 4, respect_documents=True)
    assert packed.sequence(0)[1].tolist() == [1, 2, 3, IGNORED_LABEL]


@pytest.mark.parametrize(("num_tokens", "num_sequences"), [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_sequences_are_counted_with_a_label_after_each_token(
    tmp_path: Path, num_tokens: int, num_sequences: int
) -> None:
    assert PackedSplit(split_of(tmp_path, [num_tokens]), 4, False).num_sequences == num_sequences


def test_sequence_stops_when_its_number_is_too_high(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="sequence 1 of 1"):
        PackedSplit(split_of(tmp_path, [5]), 4, False).sequence(1)


def test_description_names_the_first_documents_when_there_are_many(tmp_path: Path) -> None:
    packed = PackedSplit(split_of(tmp_path, [1] * 10), 3, False)
    assert describe_documents(packed, [1]) == "d3, d4, d5"
    assert describe_documents(packed, [2, 0]) == "d6, d7, d8, d0, ..."
