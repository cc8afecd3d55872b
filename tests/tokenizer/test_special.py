from moesaic.tokenizer.special import SpecialTokens, guess_end, read_special_tokens

TEXTS = {2: "</s>", 7: "<|im_end|>"}


def test_special_token_comes_from_the_first_file_when_several_tell() -> None:
    special = read_special_tokens(
        {"eos_token": {"content": "<a>"}},
        {"eos_token": "<b>", "bos_token": "<c>"},
        {"eos_token_id": 2},
        TEXTS.get,
    )
    assert special == SpecialTokens(bos="<c>", eos="<a>")


def test_special_token_comes_from_an_id_when_only_generation_settings_tell() -> None:
    assert read_special_tokens({}, {}, {"eos_token_id": 2}, TEXTS.get).eos == "</s>"


def test_special_token_is_the_first_id_when_several_are_listed() -> None:
    assert read_special_tokens({}, {}, {"eos_token_id": [7, 2]}, TEXTS.get).eos == "<|im_end|>"


def test_special_token_is_none_when_nothing_tells() -> None:
    assert read_special_tokens({"eos_token": None}, {}, {"eos_token_id": []}, TEXTS.get) == SpecialTokens()


def test_special_settings_leave_out_tokens_when_there_are_none() -> None:
    assert SpecialTokens(eos="</s>", pad="<p>").as_settings() == {"eos_token": "</s>", "pad_token": "<p>"}


def test_end_is_guessed_by_rank_when_several_names_are_known() -> None:
    assert guess_end({"<|im_end|>", "</s>", "<other>"}) == "</s>"
    assert guess_end({"<other>"}) is None
