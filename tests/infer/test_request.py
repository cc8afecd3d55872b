"""Every request that is refused, and what is said."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moesaic.errors import RequestError
from moesaic.infer.engine import LLM
from moesaic.infer.request import SamplingParams

REFUSED: dict[str, list[Any]] = {
    "max_tokens": [0, -3, 2.5, "3", True],
    "temperature": [-0.1, float("inf"), float("nan"), "1", None, True],
    "top_k": [0, -1, 2.5, "3", True],
    "top_p": [0.0, 1.1, float("nan"), "0.5", True],
    "min_p": [-0.1, 1.1, float("nan"), "0.5", True],
    "stop": ["", ("",), ("a", ""), 5, ["a", 5], b"a"],
    "seed": [-1, 2**63, 2.5, "3", True],
    "ignore_eos": ["no", 1, None],
}
CASES = [(name, value) for name, values in REFUSED.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_parameter_is_refused_with_its_range_when_it_is(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{name} is ") as raised:
        SamplingParams(**{name: value})
    assert raised.value.hint.startswith("accepted: ")


def test_parameters_are_accepted_when_they_stand_at_the_edge_of_their_range() -> None:
    lowest = {"max_tokens": 1, "temperature": 0, "top_k": 1, "top_p": 1.0, "min_p": 0.0, "seed": 0}
    for fields in (lowest, {"max_tokens": None, "min_p": 1.0, "seed": 2**63 - 1}):
        params = SamplingParams(**fields)
        assert {name: getattr(params, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("stop", "kept"), [("P-", ("P-",)), (["P-", "b"], ("P-", "b")), (None, ()), ([], ()), (("P-",), ("P-",))]
)
def test_stop_is_kept_as_whole_strings_when_given_as(stop: Any, kept: tuple[str, ...]) -> None:
    assert SamplingParams(stop=stop).stop == kept


def test_parameters_are_plain_numbers_when_given_as_those_of_numpy(ids_llm: LLM) -> None:
    params = SamplingParams(max_tokens=np.int64(3), top_k=np.int32(4), seed=np.int64(5), temperature=np.float32(0.5))
    assert params == SamplingParams(max_tokens=3, top_k=4, seed=5, temperature=0.5)
    assert [type(value) for value in (params.top_k, params.seed, params.temperature)] == [int, int, float]
    assert len(ids_llm.generate([1], params)[0].token_ids) == 3


@pytest.mark.parametrize("params", [{"max_tokens": 3}, 5, ""])
def test_parameters_are_refused_when_they_are_no_record(params: Any, ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"^params is of type ") as raised:
        ids_llm.generate([1], params)
    assert "SamplingParams" in raised.value.hint


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
        (None, "there is no prompt"),
        (np.zeros(0, dtype=np.int64), "there is no prompt"),
        ([[]], "the prompt is empty"),
        ([[1], []], "the prompt is empty"),
        ([[1, 61]], "token id 61 is outside the vocabulary of 61"),
        ([-1], "token id -1 is outside"),
        ([1, "a"], "neither text nor token ids"),
        ([[1.5]], "neither text nor token ids"),
        (5, "prompt 0 is neither text nor token ids: found 5"),
        (True, "prompt 0 is neither text nor token ids: found True"),
        (b"text", "prompt 0 is neither text nor token ids: found b'text'"),
        ({"text": 1}, "prompt 0 is neither text nor token ids: found {'text': 1}"),
        ([None], "prompt 0 is neither text nor token ids: found None"),
        ([True], "prompt 0 is neither text nor token ids: found True"),
        ([[1], 2], "prompt 1 is neither text nor token ids: found 2"),
        ([[1], ["text"]], "prompt 1 is neither text nor token ids: found 'text'"),
        (torch.ones(2), "prompt 0 is neither text nor token ids: found 1.0"),
        (torch.tensor(5), "prompt 0 is neither text nor token ids: found 5"),
        (np.array([True]), "prompt 0 is neither text nor token ids: found True"),
        ([1] * 64, "the prompt has 64 tokens, the model reads 64, its answer included"),
        ([1] * 65, "the prompt has 65 tokens, the model reads 64"),
        ("text", "a prompt of text needs a tokenizer"),
        (["text"], "a prompt of text needs a tokenizer"),
    ],
)
def test_prompt_is_refused_when_the_model_cannot_read_it(prompts: Any, named: str, ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match=named) as raised:
        ids_llm.generate(prompts)
    assert raised.value.hint


@pytest.mark.parametrize(
    "prompts",
    [
        torch.tensor([5, 6, 7]),
        torch.tensor([5, 6, 7], dtype=torch.int32),
        np.array([5, 6, 7]),
        [np.int64(5), np.int64(6), np.int64(7)],
        [torch.tensor(5), 6, 7],
        (5, 6, 7),
        range(5, 8),
        [torch.tensor([5, 6, 7])],
        torch.tensor([[5, 6, 7]]),
        [[np.int64(5), 6, 7]],
    ],
)
def test_ids_are_read_when_they_come_as(prompts: Any, ids_llm: LLM) -> None:
    assert ids_llm.generate(prompts, max_tokens=3) == ids_llm.generate([5, 6, 7], max_tokens=3)


def test_tensors_of_one_token_are_prompts_of_their_own_when_in_a_list(ids_llm: LLM) -> None:
    prompts: Any = [torch.tensor([5]), torch.tensor([6])]
    assert ids_llm.generate(prompts, max_tokens=3) == ids_llm.generate([[5], [6]], max_tokens=3)


def test_prompt_is_accepted_when_it_leaves_room_for_one_token(ids_llm: LLM) -> None:
    assert len(ids_llm.generate([1] * 63)[0].token_ids) == 1


@pytest.mark.parametrize("request_of", [{"prompts": [None]}, {"prompts": [1], "top_k": 0}, {"prompts": [99]}])
def test_stream_is_refused_before_its_first_piece_when_the_request_cannot_be_met(
    request_of: dict[str, Any], ids_llm: LLM
) -> None:
    with pytest.raises(RequestError):
        ids_llm.stream(**request_of)


def test_empty_text_is_refused_when_the_tokenizer_adds_nothing(text_llm: LLM) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        text_llm.generate("")


def test_stop_string_is_refused_when_there_is_no_tokenizer(ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match="a stop string needs a tokenizer"):
        ids_llm.generate([1], stop="a")


@pytest.mark.parametrize(
    ("file", "content", "named", "hinted"),
    [
        ("tokenizer.model", b"\x00", "holds a tokenizer as tokenizer.model, which is not read", "save_pretrained"),
        ("tokenizer.json", b"{ not json", "cannot read tokenizer", "tokenizers library"),
        ("notes.txt", b"", "holds no tokenizer.json", "token ids"),
    ],
)
def test_text_is_refused_with_the_reason_and_ids_are_read_when_the_tokenizer_is(
    file: str, content: bytes, named: str, hinted: str, ids_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(ids_folder, tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(content)
    llm = LLM(tmp_path / "model")
    assert len(llm.generate([1], max_tokens=2)[0].token_ids) == 2
    with pytest.raises(RequestError, match=named) as raised:
        llm.generate("text")
    assert hinted in raised.value.hint


def test_chat_is_refused_when_there_is_no_tokenizer(ids_llm: LLM) -> None:
    with pytest.raises(RequestError, match="a chat needs a tokenizer"):
        ids_llm.chat_prompt([{"role": "user", "content": "a"}])


def test_chat_is_refused_when_there_is_no_template(text_llm: LLM) -> None:
    assert text_llm.tokenizer is not None
    text_llm.tokenizer.chat_template = None
    with pytest.raises(RequestError, match="no chat template"):
        text_llm.chat_prompt([{"role": "user", "content": "a"}])
