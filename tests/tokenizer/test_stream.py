from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from moesaic.tokenizer.tokenizer import Tokenizer


def stream(
    tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool = True, context: Sequence[int] = ()
) -> list[str]:
    decoder = tokenizer.stream_decoder(context, skip_special_tokens)
    return [*(decoder.push(number) for number in ids), decoder.flush()]


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 325), max_size=30), skip=st.booleans())
def test_stream_joins_to_the_whole_text_when_ids_are_any(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="a few€😀 ", max_size=30), ends=st.sets(st.integers(0, 30)))
def test_stream_joins_to_the_whole_text_when_leading_blanks_are_stripped(
    sentencepiece_like: Tokenizer, text: str, ends: set[int]
) -> None:
    ids = sentencepiece_like.encode(text)
    for place in sorted(ends, reverse=True):
        ids.insert(min(place, len(ids)), 2)
    assert "".join(stream(sentencepiece_like, ids)) == sentencepiece_like.decode(ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="a few€😀 ", max_size=30), place=st.integers(0, 30), ends=st.sets(st.integers(0, 30)))
def test_stream_joins_to_what_follows_its_context_when_it_has_one(
    sentencepiece_like: Tokenizer, text: str, place: int, ends: set[int]
) -> None:
    ids = sentencepiece_like.encode(text)
    for end in sorted(ends, reverse=True):
        ids.insert(min(end, len(ids)), 2)
    told = sentencepiece_like.decode(ids[:place])
    assume(not told.endswith("\ufffd"))
    assert told + "".join(stream(sentencepiece_like, ids[place:], context=ids[:place])) == sentencepiece_like.decode(
        ids
    )


@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_stream_tells_all_that_follows_when_its_context_ends_within_a_character(
    sentencepiece_like: Tokenizer, num_bytes: int
) -> None:
    ids = sentencepiece_like.encode("😀few words")
    place = ids.index(sentencepiece_like.encode("😀")[-1]) - 3 + num_bytes
    rest = ids[place:]
    assert "".join(stream(sentencepiece_like, rest, context=ids[:place])) == sentencepiece_like.decode(rest)
    assert sentencepiece_like.decode(rest).endswith("few words")


def test_stream_tells_a_character_only_when_its_last_byte_arrives(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀!")
    assert len(ids) == 5
    assert stream(tokenizer, ids) == ["", "", "", "😀", "!", ""]


def test_stream_tells_text_at_once_when_characters_are_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("return x")
    assert stream(tokenizer, ids) == [*(tokenizer.decode([number]) for number in ids), ""]


def test_stream_tells_the_replacement_character_when_flushed_within_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀")[:-1]
    assert "".join(stream(tokenizer, ids)[:-1]) == "a"
    assert stream(tokenizer, ids)[-1] == tokenizer.decode(ids)[1:] != ""


@pytest.mark.parametrize(("skip", "told"), [(True, ["", ""]), (False, ["<|endoftext|>", ""])])
def test_stream_tells_a_special_token_only_when_asked(tokenizer: Tokenizer, skip: bool, told: list[str]) -> None:
    assert stream(tokenizer, [0], skip) == told


def test_stream_tells_nothing_more_when_flushed_twice(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    decoder.push(tokenizer.encode("é")[0])
    decoder.flush()
    assert decoder.flush() == ""
