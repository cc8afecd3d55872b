import itertools
import json
from pathlib import Path

import pytest

from moesaic.config.data import DataConfig, TokenizerConfig
from moesaic.data import vocabulary
from moesaic.data.rows import JsonlSource, TextField
from moesaic.data.text import FolderSource, TextFileSource
from moesaic.data.vocabulary import fit_tokenizer, sample_texts
from moesaic.errors import ConfigError, DataError
from moesaic.tokenizer.tokenizer import Tokenizer


def forbid(*arguments: object, **settings: object) -> None:
    raise AssertionError("trained again")


def test_tokenizer_is_trained_once_when_fitted_twice(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(source=str(corpus))
    first = fit_tokenizer(data, TokenizerConfig(vocab_size=270), 300)
    monkeypatch.setattr(vocabulary, "train_bpe", forbid)
    again = fit_tokenizer(data, TokenizerConfig(vocab_size=270), 300)
    assert (again.digest, again.vocab_size, again.eos_id) == (first.digest, 270, first.eos_id)


def test_tokenizer_has_the_size_of_the_model_when_none_is_asked_for(corpus: Path) -> None:
    assert fit_tokenizer(DataConfig(source=str(corpus)), TokenizerConfig(), 265).vocab_size == 265


def test_tokenizer_is_the_given_one_when_a_path_is_set(corpus: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "given")
    section = TokenizerConfig(path=str(tmp_path / "given"))
    assert fit_tokenizer(DataConfig(source=str(corpus)), section, 300).digest == tokenizer.digest


def test_tokenizer_raises_with_both_sizes_when_it_exceeds_the_model(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "given")
    section = TokenizerConfig(path=str(tmp_path / "given"))
    size = tokenizer.vocab_size
    with pytest.raises(ConfigError, match=rf"given' has {size} entries, model\.vocab_size is {size - 1}") as caught:
        fit_tokenizer(DataConfig(source=str(corpus)), section, size - 1)
    assert str(size) in caught.value.hint


def test_tokenizer_raises_when_the_model_has_no_room_for_bytes(corpus: Path) -> None:
    with pytest.raises(ConfigError, match="a vocabulary of 256 is too small"):
        fit_tokenizer(DataConfig(source=str(corpus)), TokenizerConfig(), 256)


def test_tokenizer_raises_with_the_source_when_its_text_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"a\.txt' is not UTF-8"):
        fit_tokenizer(DataConfig(source=str(tmp_path / "a.txt")), TokenizerConfig(), 300)


def test_sample_is_everything_when_the_source_is_small(corpus: Path) -> None:
    source = FolderSource("x", corpus, ["*.txt"])
    assert list(sample_texts(source, 10**6)) == [document.text for document in source.documents()]


def test_sample_is_spread_over_the_source_when_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "PIECE_CHARACTERS", 8)
    (tmp_path / "a.txt").write_text("".join(f"{number:07d}\n" for number in range(1000)))
    pieces = list(sample_texts(TextFileSource("x", tmp_path / "a.txt"), 800))
    numbers = [int(piece) for piece in pieces]
    assert len(numbers) == 100
    assert numbers[-1] > 900
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 11


def write_rows(path: Path, num_rows: int, text: str, other: str) -> JsonlSource:
    path.write_text("".join(json.dumps({"text": f"{n:04d}{text}", "other": other}) + "\n" for n in range(num_rows)))
    return JsonlSource("x", path, TextField("text"))


def test_sample_is_all_of_the_text_when_rows_hold_much_else(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", 200, "six", other="o" * 300)
    num_bytes = 7 * 200
    assert source.num_bytes is not None
    assert source.num_bytes > 40 * num_bytes
    assert len(list(sample_texts(source, num_bytes + 100))) == 200


def test_sample_is_spread_over_the_rows_when_their_text_exceeds_it(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", 200, "six", other="o" * 10)
    numbers = [int(text[:4]) for text in sample_texts(source, 7 * 20)]
    assert len(numbers) == 20
    assert numbers[-1] > 180
    assert max(b - a for a, b in itertools.pairwise(numbers)) <= 11


def test_sample_is_the_beginning_when_the_size_of_the_source_is_unknown(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", 200, "six", other="")
    source.num_bytes = None
    assert [int(text[:4]) for text in sample_texts(source, 7 * 20)] == list(range(20))
