"""`LLM`: the same tokens with and without a cache, alone and in a batch; and when an answer ends."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.errors import CheckpointError
from moesaic.infer.engine import LLM
from moesaic.infer.request import Completion, SamplingParams, Usage
from moesaic.infer.sequence import Sequence
from moesaic.testing.tiny import tiny_model
from tests.models.greedy import greedy_without_cache

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13, 14, 15], [20, 21, 22], [1, 60, 1, 60, 1]]
ARCHITECTURES = {
    "softmax": {},
    "sigmoid": {"router": "sigmoid", "n_group": 2, "topk_group": 1, "num_experts": 6},
    "switch": {"router": "switch", "num_experts_per_tok": 1},
    "window": {"sliding_window": 4, "qk_norm": "head"},
    "dense": {"num_experts": 0, "num_experts_per_tok": 0},
}


def _force(monkeypatch: pytest.MonkeyPatch, token_ids: list[int]) -> None:
    """Let the model choose these tokens, one after the other."""
    waiting = iter(token_ids)

    def choose(sequence: Sequence, logits_V: Tensor) -> int:
        return next(waiting)

    monkeypatch.setattr(Sequence, "choose", choose)


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_tokens_are_those_of_whole_passes_when_a_cache_is_used(changes: dict[str, object], tmp_path: Path) -> None:
    model = tiny_model(**changes)
    export_model(model, tmp_path / "model")
    completions = LLM(tmp_path / "model").generate(PROMPTS, max_tokens=20)
    assert [each.token_ids for each in completions] == [greedy_without_cache(model, each, 20) for each in PROMPTS]


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


def _with_generation_config(folder: Path, target: Path, content: Any) -> Path:
    shutil.copytree(folder, target)
    (target / "generation_config.json").write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("as_list", [False, True])
def test_completion_ends_at_the_end_tokens_of_both_files_when_generation_config_names_others(
    as_list: bool, ids_folder: Path, tmp_path: Path
) -> None:
    (unbroken,) = LLM(ids_folder).generate([5, 6, 7], max_tokens=10)
    first, second = unbroken.token_ids[3], unbroken.token_ids[2]
    assert unbroken.token_ids[:4] == [*unbroken.token_ids[:2], second, first]
    export_model(tiny_model(eos_token_id=first), tmp_path / "old")
    told = {"eos_token_id": [59, second] if as_list else second}
    folder = _with_generation_config(tmp_path / "old", tmp_path / "model", told)
    assert LLM(folder).generate([5, 6, 7], max_tokens=10)[0].token_ids == unbroken.token_ids[:3]
    folder = _with_generation_config(tmp_path / "old", tmp_path / "other", {"eos_token_id": [59]})
    assert LLM(folder).generate([5, 6, 7], max_tokens=10)[0].token_ids == unbroken.token_ids[:4]


@pytest.mark.parametrize("content", [{}, {"eos_token_id": None}])
def test_completion_ends_at_the_limit_when_generation_config_names_no_end_token(
    content: Any, ids_folder: Path, tmp_path: Path
) -> None:
    folder = _with_generation_config(ids_folder, tmp_path / "model", content)
    assert LLM(folder).generate([5], max_tokens=4)[0].finish_reason == "length"
    (folder / "generation_config.json").unlink()
    assert LLM(folder).generate([5], max_tokens=4)[0].finish_reason == "length"


@pytest.mark.parametrize("value", ["</s>", [2, "</s>"], 2.5, True])
def test_model_is_refused_when_its_generation_config_names_no_token_as_the_end(
    value: Any, ids_folder: Path, tmp_path: Path
) -> None:
    folder = _with_generation_config(ids_folder, tmp_path / "model", {"eos_token_id": value})
    with pytest.raises(CheckpointError, match=r"generation_config\.json' has eos_token_id") as raised:
        LLM(folder)
    assert "token id" in raised.value.hint


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


def test_text_is_whole_when_it_ends_with_the_beginning_of_a_stop_string(text_llm: LLM) -> None:
    (unbroken,) = text_llm.generate("the", max_tokens=12, ignore_eos=True)
    stop = unbroken.text[-2:] + "never there"
    assert text_llm.generate("the", max_tokens=12, ignore_eos=True, stop=stop) == [unbroken]


def test_text_ends_at_a_special_token_when_its_name_is_the_stop_string(
    text_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert text_llm.tokenizer is not None
    end, words = text_llm.tokenizer.eos_id, text_llm.tokenizer.encode(" sat on")
    assert end is not None
    name = text_llm.tokenizer.decode([end], skip_special_tokens=False)
    for stop, text in ((name, " sat"), ("never there", " sat on"), ("never", " sat on")):
        _force(monkeypatch, [*words[:1], end, *words[1:]])
        (completion,) = text_llm.generate("the cat", max_tokens=len(words) + 1, ignore_eos=True, stop=["zz", stop])
        assert completion.text == text
        assert completion.finish_reason == ("stop" if stop == name else "length")


def test_first_blank_is_kept_when_the_tokenizer_strips_that_of_a_whole_text(
    sentencepiece_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sentencepiece_llm.tokenizer is not None
    words = sentencepiece_llm.tokenizer.encode("plain words")
    for prompt in ("a few", sentencepiece_llm.tokenizer.encode("a few plain words and a few more of")):
        _force(monkeypatch, words)
        (completion,) = sentencepiece_llm.generate(prompt, max_tokens=len(words))
        assert completion.text == " plain words"


def test_first_blank_is_stripped_when_nothing_but_the_start_stands_before(
    sentencepiece_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sentencepiece_llm.tokenizer is not None
    words = sentencepiece_llm.tokenizer.encode("plain words")
    _force(monkeypatch, words)
    assert sentencepiece_llm.generate([1], max_tokens=len(words))[0].text == "plain words"


def test_text_and_its_ids_give_the_same_when_used_as_prompts(text_llm: LLM) -> None:
    ids = text_llm.tokenizer.encode("the cat")  # type: ignore[union-attr]
    assert text_llm.generate(["the cat"], max_tokens=5) == text_llm.generate(ids, max_tokens=5)


def test_chat_prompt_is_the_template_of_the_checkpoint_when_it_has_one(text_llm: LLM) -> None:
    ids = text_llm.chat_prompt([{"role": "user", "content": "the cat"}])
    assert text_llm.tokenizer.decode(ids) == "<user>the cat<assistant>"  # type: ignore[union-attr]


def test_chat_prompt_holds_the_token_itself_when_the_template_names_a_special_one(text_llm: LLM) -> None:
    assert text_llm.tokenizer is not None
    text_llm.tokenizer.chat_template = "{{ messages[0].content }}{{ eos_token }}"
    assert text_llm.chat_prompt([{"role": "user", "content": "the cat"}])[-1] == text_llm.tokenizer.eos_id


def test_special_tokens_are_plain_letters_when_a_prompt_of_text_names_one(text_llm: LLM) -> None:
    assert text_llm.tokenizer is not None
    name = text_llm.tokenizer.special.eos
    assert name is not None
    ids = text_llm.tokenizer.encode(f"the {name}")
    assert text_llm.tokenizer.eos_id not in ids
    assert text_llm.generate(f"the {name}", max_tokens=4) == text_llm.generate([ids], max_tokens=4)


def test_start_token_stands_before_a_prompt_of_text_when_the_tokenizer_adds_one(sentencepiece_llm: LLM) -> None:
    assert sentencepiece_llm.tokenizer is not None
    ids = [1, *sentencepiece_llm.tokenizer.encode("a few")]
    assert sentencepiece_llm.generate("a few", max_tokens=4) == sentencepiece_llm.generate(ids, max_tokens=4)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"router": "expert_choice"}, True),
        ({"eval_capacity_factor": 1.25}, True),
        ({"capacity_factor": 1.25}, False),
        ({"num_experts": 0, "num_experts_per_tok": 0}, False),
    ],
)
def test_neighbours_are_warned_of_when_the_experts_take_a_limited_number(
    changes: dict[str, object], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_model(tiny_model(**changes), tmp_path / "model")
    LLM(tmp_path / "model")
    assert caplog.text.count("depends on the other prompts") == int(warned)


def test_run_folder_is_read_when_it_holds_a_model(ids_folder: Path) -> None:
    assert LLM(ids_folder.parent).generate([5], max_tokens=3) == LLM(ids_folder).generate([5], max_tokens=3)


def test_checkpoint_of_a_run_is_read_with_the_tokenizer_of_the_run_when_given(
    text_llm: LLM, text_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(text_folder.parent / "tokenizer", tmp_path / "run" / "tokenizer")
    store = CheckpointStore(tmp_path / "run" / "checkpoints", 2, True)
    state = {"step": 3, "config": {"model": text_llm.config.model_dump(mode="json")}}
    checkpoint = store.save(Snapshot(state, {"model": load_model(text_folder).state_dict()}))
    assert LLM(checkpoint).generate("the cat", max_tokens=8) == text_llm.generate("the cat", max_tokens=8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_have_the_dtype_that_is_asked_for_when_loaded(dtype: str, ids_folder: Path) -> None:
    llm = LLM(ids_folder, dtype=dtype)
    held = [each for name, each in llm.model.named_parameters() if not each.is_meta and "router" not in name]
    assert {str(parameter.dtype) for parameter in held} == {f"torch.{dtype}"}
    assert len(llm.generate(PROMPTS, max_tokens=3)) == len(PROMPTS)
