import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import ConfigError, DataError
from moesaic.tokenizer.bpe import END_OF_TEXT, PADDING, train_bpe
from moesaic.tokenizer.tokenizer import Tokenizer

TRAIN_AND_PRINT_DIGEST = """
from moesaic.tokenizer.bpe import train_bpe
words = [f"def name_{i % 37}(x):\\n    return {i}\\n" for i in range(500)]
print(train_bpe(words, vocab_size=400).digest)
"""


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_bpe_round_trip_gives_the_text_back_when_it_is_any_string(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["", "\r\n\t ", " \u00a0x", "\ufeff", "\x00\x7f", "e\u0301", "👩‍🚀", "a\r\nb\n"])
def test_bpe_round_trip_gives_the_text_back_when_it_is_odd(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_bpe_keeps_line_end_and_indentation_in_one_token_when_trained_on_code() -> None:
    code = "def f(x):\n        return x\n" * 50
    tokenizer = train_bpe([code], vocab_size=400)
    pieces = [tokenizer.decode([number]) for number in tokenizer.encode("def f(x):\n        return x\n")]
    assert pieces == ["def", " f", "(x", "):\n       ", " return", " x", "\n"]


def test_bpe_cuts_digits_into_pairs_when_a_number_is_frequent() -> None:
    tokenizer = train_bpe(["12345 " * 100], vocab_size=400)
    assert [tokenizer.decode([number]) for number in tokenizer.encode("12345")] == ["12", "34", "5"]


def test_bpe_gives_the_same_tokenizer_when_trained_in_two_processes() -> None:
    def digest() -> str:
        command = [sys.executable, "-c", TRAIN_AND_PRINT_DIGEST]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert digest() == digest() != ""


def test_bpe_gives_the_first_ids_to_the_special_tokens_when_trained(tokenizer: Tokenizer) -> None:
    assert (tokenizer.special.eos, tokenizer.special.pad) == (END_OF_TEXT, PADDING)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (0, 1, None)


def test_bpe_has_the_entries_asked_for_when_text_abounds() -> None:
    words = "".join(f"name{chr(97 + i % 26)}{chr(97 + i % 7)} " for i in range(500))
    assert train_bpe([words], vocab_size=290).vocab_size == 290


def test_bpe_has_no_pad_token_when_one_special_token_is_given() -> None:
    assert train_bpe(["a b"], 300, special_tokens=["<end>"]).special.pad is None


def test_bpe_reads_no_further_when_it_has_seen_max_bytes() -> None:
    def texts():
        yield "é" * 50
        raise AssertionError("read on")

    assert train_bpe(texts(), vocab_size=300, max_bytes=99).vocab_size >= 258


def test_bpe_raises_when_the_vocabulary_has_no_room_for_bytes() -> None:
    with pytest.raises(ConfigError, match=r"a vocabulary of 257 is too small .* 2 special tokens need 258") as caught:
        train_bpe(["a"], vocab_size=257)
    assert "258 or more" in caught.value.hint


def test_bpe_raises_when_there_is_no_text() -> None:
    with pytest.raises(DataError, match="cannot train a tokenizer: there is no text"):
        train_bpe(["", ""], vocab_size=300)
