import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data.shard import MAX_NAMES, ShardWriter, TokenSplit, choose_dtype

DTYPE = choose_dtype(1000)


def write(folder: Path, documents: list[list[int]], shard_tokens: int = 7) -> dict:
    with ShardWriter(folder, "train", DTYPE, shard_tokens) as writer:
        for number, ids in enumerate(documents):
            writer.append(f"name {number}", ids, num_characters=10)
        return writer.finish()


@pytest.mark.parametrize(("vocab_size", "num_bytes"), [(2**16, 2), (2**16 + 1, 4)])
def test_dtype_is_the_narrowest_when_it_must_hold_every_id(vocab_size: int, num_bytes: int) -> None:
    dtype = choose_dtype(vocab_size)
    assert dtype.itemsize == num_bytes
    assert np.array([vocab_size - 1]).astype(dtype)[0] == vocab_size - 1


@settings(max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=20), max_size=8),
    shard_tokens=st.integers(1, 12),
    start=st.integers(0, 200),
    length=st.integers(0, 50),
)
def test_split_reads_what_was_written_when_shards_are_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, documents: list, shard_tokens: int, start: int, length: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    entry = write(folder, documents, shard_tokens)
    split = TokenSplit(folder, "train", DTYPE, entry)
    stream = [number for document in documents for number in document]
    assert split.read(0, split.num_tokens).tolist() == stream
    assert split.read(start, start + length).tolist() == stream[start : start + length]
    assert all(shard["tokens"] <= shard_tokens for shard in entry["shards"])
    ends = np.cumsum([len(document) for document in documents])
    assert split.document_starts.tolist() == [0, *ends][: len(documents)]
    assert (entry["documents"], entry["characters"]) == (len(documents), 10 * len(documents))


def test_split_names_documents_when_their_names_were_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_NAMES > 1000
    monkeypatch.setattr("moesaic.data.shard.MAX_NAMES", 1)
    split = TokenSplit(tmp_path, "train", DTYPE, write(tmp_path, [[1], [2]]))
    assert [split.document_name(number) for number in range(2)] == ["name 0", "document 1"]


def test_split_raises_when_a_shard_has_another_size(tmp_path: Path) -> None:
    entry = write(tmp_path, [[1, 2, 3]])
    (tmp_path / "train-00000.bin").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"train-00000\.bin' has 4 bytes in place of 6"):
        TokenSplit(tmp_path, "train", DTYPE, entry)


def test_split_raises_when_counts_do_not_fit_the_manifest(tmp_path: Path) -> None:
    entry = write(tmp_path, [[1, 2, 3]])
    with pytest.raises(ValueError, match="do not fit its manifest"):
        TokenSplit(tmp_path, "train", DTYPE, entry | {"documents": 2})


def test_shard_names_are_json_when_they_hold_odd_characters(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", DTYPE) as writer:
        writer.append("bad \udcff name", [1], 1)
        writer.finish()
    assert json.loads((tmp_path / "train-names.json").read_text(encoding="utf-8")) == ["bad ? name"]
