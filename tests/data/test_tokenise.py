import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data import tokenise
from moesaic.data.shard import TokenSplit, choose_dtype
from moesaic.data.text import FolderSource, TextFileSource
from moesaic.data.tokenise import cut_pieces, read_manifest, tokenise_source
from moesaic.errors import DataError
from moesaic.tokenizer.special import SpecialTokens
from moesaic.tokenizer.tokenizer import Tokenizer


def splits_of(folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Return the documents of both splits, read back from a tokenised folder."""
    found = []
    for name in tokenise.SPLITS:
        split = TokenSplit(folder, name, choose_dtype(1000), read_manifest(folder)["splits"][name])
        stream, starts = split.read(0, split.num_tokens).tolist(), [*split.document_starts, split.num_tokens]
        found.append([stream[a:b] for a, b in itertools.pairwise(starts)])
    return found[0], found[1]


def tokenised(source, tokenizer: Tokenizer, held_out: float, folder: Path) -> Path:
    folder.mkdir()
    tokenise_source(source, tokenizer, held_out, folder, lambda num_bytes: None)
    return folder


def test_splits_are_disjoint_and_complete_when_whole_documents_are_held_out(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    source = FolderSource("x", corpus, ["*.txt"])
    train, held_out = splits_of(tokenised(source, tokenizer, 0.1, tmp_path / "out"))
    whole = [[*tokenizer.encode(document.text), tokenizer.eos_id] for document in source.documents()]
    assert (len(train), len(held_out)) == (108, 12)
    assert sorted(train + held_out) == sorted(whole)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_splits_join_to_the_document_when_its_end_is_held_out(
    tokenizer: Tokenizer, tmp_path: Path, share: float
) -> None:
    (tmp_path / "a.txt").write_text("one two three four " * 20)
    source = TextFileSource("x", tmp_path / "a.txt")
    train, held_out = splits_of(tokenised(source, tokenizer, share, tmp_path / "out"))
    whole = tokenizer.encode("one two three four " * 20)
    held = int(len(whole) * share)
    assert train == [[*whole[: len(whole) - held], tokenizer.eos_id]]
    assert held_out == ([[*whole[len(whole) - held :], tokenizer.eos_id]] if held else [])


def test_document_has_one_end_token_when_its_text_spells_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one<|endoftext|>two")
    train, _ = splits_of(tokenised(TextFileSource("x", tmp_path / "a.txt"), tokenizer, 0, tmp_path / "out"))
    assert [document.count(tokenizer.eos_id) for document in train] == [1]


def test_tokens_are_those_of_the_whole_text_when_it_is_cut_into_pieces(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenise, "PIECE_CHARACTERS", 40)
    monkeypatch.setattr(tokenise, "BATCH_CHARACTERS", 100)
    text = "one two:\n    three\n\n\nfour five(\n  six)\nseven\n" * 10
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(text)
    source = FolderSource("x", tmp_path, ["*.txt"])
    train, _ = splits_of(tokenised(source, tokenizer, 0, tmp_path / "out"))
    assert train == [[*tokenizer.encode(text), tokenizer.eos_id]] * 2


def test_manifest_tells_source_and_counts_when_tokenised(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = FolderSource("given name", corpus, ["*.txt"])
    folder = tokenised(source, tokenizer, 0.1, tmp_path / "out")
    manifest = read_manifest(folder)
    assert manifest["source"] == "given name"
    assert manifest["fingerprint"] == source.fingerprint()
    assert manifest["tokenizer_digest"] == tokenizer.digest
    assert manifest["dtype"] == "<u2"
    counts = [manifest["splits"][split] for split in tokenise.SPLITS]
    assert sum(count["documents"] for count in counts) == 120
    assert sum(count["characters"] for count in counts) == sum(len(d.text) for d in source.documents())
    assert all(sum(shard["tokens"] for shard in count["shards"]) == count["tokens"] for count in counts)


@pytest.mark.parametrize("piece_characters", [10, 10**6])
def test_progress_adds_up_to_the_source_when_all_is_done(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_characters: int
) -> None:
    monkeypatch.setattr(tokenise, "PIECE_CHARACTERS", piece_characters)
    source, done = FolderSource("x", corpus, ["*.txt"]), []
    tokenise_source(source, tokenizer, 0.1, tmp_path, done.append)
    assert sum(done) == source.num_bytes
    assert (len(done) > 120) == (piece_characters == 10)


@given(text=st.text(alphabet="a \n", max_size=80), max_characters=st.integers(1, 20))
def test_pieces_join_to_the_text_when_cut_at_any_length(text: str, max_characters: int) -> None:
    pieces = list(cut_pieces(text, max_characters))
    assert "".join(pieces) == text
    assert all(len(piece) <= max_characters for piece in pieces)


def test_pieces_are_cut_before_unindented_lines_when_there_are_any() -> None:
    assert list(cut_pieces("aa\n b\ncc\n d\neeee", 9)) == ["aa\n b\n", "cc\n d\n", "eeee"]
    assert list(cut_pieces("aaaaa", 2)) == ["aa", "aa", "a"]


def test_tokenise_raises_when_the_tokenizer_has_no_end(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    endless = Tokenizer(tokenizer._content, SpecialTokens())
    source = FolderSource("x", corpus, ["*.txt"])
    with pytest.raises(DataError, match="the tokenizer has no end-of-text token") as caught:
        tokenise_source(source, endless, 0.1, tmp_path, lambda num_bytes: None)
    assert "eos_token" in caught.value.hint


def test_manifest_raises_when_it_is_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99 in place of 1"):
        read_manifest(tmp_path)
