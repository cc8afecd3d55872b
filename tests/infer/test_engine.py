"""`LLM`: the same tokens with and without a cache, alone and in a batch; and when an answer ends."""

from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.export import export_model
from moesaic.infer.engine import LLM
from moesaic.infer.request import Completion, SamplingParams, Usage
from moesaic.models.model import LanguageModel
from moesaic.testing.tiny import tiny_model

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [1, 60, 1, 60, 1]]
ARCHITECTURES = {
    "softmax": {},
    "sigmoid": {"router": "sigmoid", "n_group": 2, "topk_group": 1, "num_experts": 6},
    "switch": {"router": "switch", "num_experts_per_tok": 1},
    "window": {"sliding_window": 4, "qk_norm": "head"},
    "dense": {"num_experts": 0, "num_experts_per_tok": 0},
}


def _greedy_without_cache(model: LanguageModel, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_tokens_are_those_of_whole_passes_when_a_cache_is_used(changes: dict[str, object], tmp_path: Path) -> None:
    model = tiny_model(**changes)
    export_model(model, tmp_path / "model")
    completions = LLM(tmp_path / "model").generate(PROMPTS, max_tokens=20)
    assert [each.token_ids for each in completions] == [_greedy_without_cache(model, each, 20) for each in PROMPTS]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_alone_when_prompts_of_other_lengths_stand_beside(temperature: float, ids_llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=temperature, top_p=0.9, seed=5)
    together = ids_llm.generate(PROMPTS, params)
    assert together == [ids_llm.generate(prompt, params)[0] for prompt in PROMPTS]
    assert len({tuple(each.token_ids) for each in together}) == len(PROMPTS)


def test_sequence_goes_on_undisturbed_when_its_neighbours_have_ended(text_llm: LLM) -> None:
    prompts = ["the cat", "a bird in the tree near"]
    alone = [text_llm.generate(prompt, max_tokens=20, ignore_eos=True)[0] for prompt in prompts]
    stop = alone[0].text[2:4]
    assert stop not in alone[1].text
    together = text_llm.generate(prompts, max_tokens=20, ignore_eos=True, stop=stop)
    assert together[0].finish_reason == "stop"
    assert together[1] == alone[1]


def test_draws_are_the_same_when_the_seed_is(ids_llm: LLM) -> None:
    drawn = [ids_llm.generate([3], temperature=2.0, max_tokens=16, seed=seed)[0].token_ids for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_draws_differ_when_no_seed_is_given(ids_llm: LLM) -> None:
    drawn = [ids_llm.generate([3], temperature=2.0, max_tokens=16)[0].token_ids for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("changes", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-40}])
def test_draws_are_the_best_tokens_when_the_filters_leave_one(changes: dict[str, float], ids_llm: LLM) -> None:
    best = ids_llm.generate(PROMPTS, max_tokens=8)
    assert ids_llm.generate(PROMPTS, SamplingParams(max_tokens=8, temperature=1.5), **changes) == best


def test_completion_ends_at_the_limit_when_max_tokens_is_reached(ids_llm: LLM) -> None:
    (completion,) = ids_llm.generate([5, 6, 7], max_tokens=4)
    assert completion == Completion("", completion.token_ids, "length", Usage(3, 4))
    assert len(completion.token_ids) == 4


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_completion_ends_at_the_context_when_nothing_else_ends_it(max_tokens: int | None, ids_llm: LLM) -> None:
    completions = ids_llm.generate([list(range(60)), [5, 6]], max_tokens=max_tokens)
    assert [each.usage for each in completions] == [Usage(60, 4), Usage(2, 62)]
    assert {each.finish_reason for each in completions} == {"length"}


def test_completion_ends_with_the_end_token_when_the_model_gives_it(ids_folder: Path, tmp_path: Path) -> None:
    (unbroken,) = LLM(ids_folder).generate([5, 6, 7], max_tokens=10)
    first = 3
    end = unbroken.token_ids[first]
    assert end not in unbroken.token_ids[:first]
    export_model(tiny_model(eos_token_id=[59, end]), tmp_path / "model")
    llm = LLM(tmp_path / "model")
    (completion,) = llm.generate([5, 6, 7], max_tokens=10)
    assert completion.token_ids == unbroken.token_ids[: first + 1]
    assert (completion.finish_reason, completion.usage) == ("stop", Usage(3, first + 1))
    assert llm.generate([5, 6, 7], max_tokens=10, ignore_eos=True) == [unbroken]


@pytest.mark.parametrize("place", [1, 3, 6])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_text_ends_before_a_stop_string_when_it_crosses_tokens(place: int, length: int, text_llm: LLM) -> None:
    (unbroken,) = text_llm.generate("the", max_tokens=24, ignore_eos=True)
    stop = unbroken.text[place : place + length]
    (completion,) = text_llm.generate("the", max_tokens=24, ignore_eos=True, stop=[stop, "never there"])
    assert completion.text == unbroken.text[: unbroken.text.index(stop)]
    assert completion.finish_reason == "stop"
    assert completion.token_ids == unbroken.token_ids[: len(completion.token_ids)]
    assert stop in text_llm.tokenizer.decode(completion.token_ids)  # type: ignore[union-attr]


def test_pieces_join_to_the_text_and_the_last_one_brings_the_completion_when_streamed(text_llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.5, seed=3, stop=("zz",))
    prompts = ["the cat", "dog"]
    deltas = list(text_llm.stream(prompts, params))
    for index, expected in enumerate(text_llm.generate(prompts, params)):
        own = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in own) == expected.text
        assert [delta.completion for delta in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].completion == expected


def test_text_is_that_of_its_tokens_when_no_stop_string_is_found(text_llm: LLM) -> None:
    (completion,) = text_llm.generate("bird", max_tokens=30, temperature=2.0, seed=8, ignore_eos=True)
    assert completion.text == text_llm.tokenizer.decode(completion.token_ids)  # type: ignore[union-attr]


def test_text_and_its_ids_give_the_same_when_used_as_prompts(text_llm: LLM) -> None:
    ids = text_llm.tokenizer.encode("the cat")  # type: ignore[union-attr]
    assert text_llm.generate(["the cat"], max_tokens=5) == text_llm.generate(ids, max_tokens=5)


def test_chat_prompt_is_the_template_of_the_checkpoint_when_it_has_one(text_llm: LLM) -> None:
    ids = text_llm.chat_prompt([{"role": "user", "content": "the cat"}])
    assert text_llm.tokenizer.decode(ids) == "<user>the cat<assistant>"  # type: ignore[union-attr]


def test_run_folder_is_read_when_it_holds_a_model(ids_folder: Path) -> None:
    assert LLM(ids_folder.parent).generate([5], max_tokens=3) == LLM(ids_folder).generate([5], max_tokens=3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_have_the_dtype_that_is_asked_for_when_loaded(dtype: str, ids_folder: Path) -> None:
    llm = LLM(ids_folder, dtype=dtype)
    assert {str(parameter.dtype) for parameter in llm.model.parameters()} == {f"torch.{dtype}"}
    assert len(llm.generate(PROMPTS, max_tokens=3)) == len(PROMPTS)
