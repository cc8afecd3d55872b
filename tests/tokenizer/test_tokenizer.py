import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from moesaic.errors import DataError, RequestError
from moesaic.tokenizer.tokenizer import Tokenizer

SAMPLES = ["", "def f(x):\n    return 1\n", "  two  blanks ", "Naïve € 😀", "tab\tand\r\nmore", "<|pad|>x"]


def test_encode_reads_a_special_token_as_plain_text_when_it_stands_in_a_document(
    tokenizer: Tokenizer,
) -> None:
    text = "a<|endoftext|>b"
    for ids in (tokenizer.encode(text), tokenizer.encode_batch([text])[0]):
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == text


def test_encode_reads_a_special_token_as_itself_when_allowed(tokenizer: Tokenizer) -> None:
    text = "a<|endoftext|>b"
    ids = tokenizer.encode(text, allow_special=True)
    assert ids.count(tokenizer.eos_id) == 1
    assert (tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=False)) == ("ab", text)
    assert tokenizer.eos_id not in tokenizer.encode(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_encode_batch_equals_encode_when_texts_are_any(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_encode_adds_the_start_token_only_when_asked(sentencepiece_like: Tokenizer) -> None:
    plain = sentencepiece_like.encode("a few")
    assert sentencepiece_like.bos_id == 1
    assert sentencepiece_like.encode("a few", add_special_tokens=True) == [1, *plain]
    assert sentencepiece_like.encode("a few", add_special_tokens=True, allow_special=True) == [1, *plain]


@pytest.mark.parametrize("batch", [False, True])
def test_encode_raises_when_text_holds_half_a_surrogate_pair(tokenizer: Tokenizer, batch: bool) -> None:
    with pytest.raises(RequestError, match="character 2 is half of a surrogate pair"):
        tokenizer.encode_batch(["ab\ud800"]) if batch else tokenizer.encode("ab\ud800")


def test_decode_leaves_out_ids_when_they_have_no_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("x"), 5000]) == "x"


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}"])
def test_saved_tokenizer_encodes_as_in_transformers_when_loaded_there(
    tokenizer: Tokenizer, tmp_path: Path, template: str | None
) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer(tokenizer._content, tokenizer.special, template, max_length=77)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in SAMPLES:
        assert theirs(text)["input_ids"] == tokenizer.encode(text, add_special_tokens=True, allow_special=True)
        assert theirs.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert (theirs.model_max_length, theirs.chat_template) == (77, template)


def test_saved_tokenizer_is_the_same_when_loaded_again(sentencepiece_like: Tokenizer, tmp_path: Path) -> None:
    sentencepiece_like.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert (again.digest, again.special) == (sentencepiece_like.digest, sentencepiece_like.special)
    assert (again.max_length, again.vocab_size) == (None, sentencepiece_like.vocab_size)
    assert (again.bos_id, again.eos_id, again.pad_id) == (1, 2, None)


def test_loaded_tokenizer_has_the_file_digest_when_line_ends_are_foreign(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = tokenizer._content.replace("\n", "\r\n")
    (tmp_path / "tokenizer.json").write_bytes(content.encode())
    loaded = Tokenizer.load(tmp_path)
    loaded.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").digest == loaded.digest != tokenizer.digest


def test_loaded_tokenizer_knows_its_end_when_tokenizer_json_is_alone(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer._content)
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.eos_id, loaded.chat_template, loaded.max_length) == (0, None, None)


def test_loaded_tokenizer_prefers_the_template_file_when_settings_have_one_too(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    Tokenizer(tokenizer._content, tokenizer.special, "in settings").save(tmp_path)
    assert Tokenizer.load(tmp_path).apply_chat_template([]) == "in settings"
    (tmp_path / "chat_template.jinja").write_text("in file")
    assert Tokenizer.load(tmp_path).apply_chat_template([]) == "in file"


def test_loaded_tokenizer_keeps_long_texts_whole_when_its_file_cuts_and_fills(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    backend = Backend.from_str(tokenizer._content)
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    loaded = Tokenizer.load(tmp_path)
    for text in ("x", "one two three four five six"):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.encode(text, allow_special=True) == tokenizer.encode(text)


def test_vocab_size_is_the_highest_id_plus_one_when_ids_have_gaps(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tree = json.loads(tokenizer._content)
    tree["model"]["vocab"]["unreached"] = 400
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    assert Tokenizer.load(tmp_path).vocab_size == 401


def test_load_raises_when_tokenizer_json_cannot_be_parsed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{ not json")
    with pytest.raises(DataError, match=r"cannot read tokenizer '.*': ") as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizers library" in caught.value.hint


def test_special_ids_are_those_that_decoding_leaves_out_when_added_tokens_are_of_both_kinds(
    sentencepiece_like: Tokenizer, tmp_path: Path
) -> None:
    backend = Backend.from_str(sentencepiece_like._content)
    backend.add_tokens(["shown"])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.special_ids == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert loaded.decode(loaded.encode("shown")) == "shown"


def test_chat_raises_when_the_tokenizer_has_no_template(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="this model's tokenizer has no chat template") as caught:
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])
    assert "chat_template.jinja" in caught.value.hint


def test_chat_prompt_holds_special_tokens_when_encoded_with_them(tokenizer: Tokenizer) -> None:
    chatty = Tokenizer(tokenizer._content, tokenizer.special, "{{ messages[0].content }}{{ eos_token }}")
    prompt = chatty.apply_chat_template([{"role": "user", "content": "hi"}])
    assert chatty.encode(prompt, allow_special=True)[-1] == chatty.eos_id
