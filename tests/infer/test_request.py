"""Every request that is refused, and what is said."""

from typing import Any

import pytest

from moesaic.errors import RequestError
from moesaic.infer.engine import LLM
from moesaic.infer.request import SamplingParams

OUT_OF_RANGE: dict[str, list[Any]] = {
    "max_tokens": [0, -3],
    "temperature": [-0.1, float("inf"), float("nan")],
    "top_k": [0, -1],
    "top_p": [0.0, 1.1, float("nan")],
    "min_p": [-0.1, 1.1, float("nan")],
    "stop": [("",), ("a", "")],
    "seed": [-1, 2**63],
}
CASES = [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_parameter_is_refused_with_its_range_when_it_is(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{name} is ") as raised:
        SamplingParams(**{name: value})
    assert raised.value.hint.startswith("accepted: ")


def test_parameters_are_accepted_when_they_stand_at_the_edge_of_their_range() -> None:
    SamplingParams(max_tokens=1, temperature=0, top_k=1, top_p=1.0, min_p=0.0, seed=0)
    SamplingParams(max_tokens=None, min_p=1.0, seed=2**63 - 1)


def test_parameter_is_refused_with_the_nearest_name_when_it_is_misspelt(ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match="unknown sampling parameter 'max_token'") as raised:
        ids_llm.generate([1], max_token=3)
    assert raised.value.hint == "did you mean 'max_tokens'?"


def test_change_is_refused_when_its_value_is_out_of_range(ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match="top_k is 0"):
        ids_llm.generate([1], SamplingParams(), top_k=0)


def test_stop_may_be_one_string_a_list_or_none_when_changed(text_llm: LLM) -> None:
    texts = {
        text_llm.generate("the", max_tokens=6, stop=stop)[0].text for stop in ("never there", ["never there"], None)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ([], "there is no prompt"),
        ([[]], "the prompt is empty"),
        ([[1], []], "the prompt is empty"),
        ([[1, 61]], "token id 61 is outside the vocabulary of 61"),
        ([-1], "token id -1 is outside"),
        ([1, "a"], "neither text nor token ids"),
        ([[1.5]], "neither text nor token ids"),
        ([1] * 66, "the prompt has 66 tokens, the model reads 64"),
        ("text", "a prompt of text needs a tokenizer"),
        (["text"], "a prompt of text needs a tokenizer"),
    ],
)
def test_prompt_is_refused_when_the_model_cannot_read_it(prompts: Any, named: str, ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match=named) as raised:
        ids_llm.generate(prompts)
    assert raised.value.hint


def test_empty_text_is_refused_when_the_tokenizer_adds_nothing(text_llm: LLM) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        text_llm.generate("")


def test_stop_string_is_refused_when_there_is_no_tokenizer(ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match="stop strings need a tokenizer"):
        ids_llm.generate([1], stop="a")


def test_chat_is_refused_when_there_is_no_tokenizer(ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match="a chat needs a tokenizer"):
        ids_llm.chat_prompt([{"role": "user", "content": "a"}])


def test_chat_is_refused_when_there_is_no_template(text_llm: LLM) -> None:
    assert text_llm.tokenizer is not None
    text_llm.tokenizer.chat_template = None
    with pytest.raises(RequestError, match="no chat template"):
        text_llm.chat_prompt([{"role": "user", "content": "a"}])
