"""A cache that grows: not a bit of the logits changes, and no more is held than may be needed."""

import pytest
import torch
from torch import Tensor

from moesaic.errors import MemoryBudgetError
from moesaic.infer import runner as runner_room
from moesaic.infer.engine import LLM
from moesaic.infer.request import SamplingParams
from moesaic.infer.runner import Runner
from moesaic.infer.sequence import Sequence
from moesaic.models.model import LanguageModel
from moesaic.testing.tiny import tiny_model

PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13], [20, 21]]


def _sequences(max_tokens: int) -> list[Sequence]:
    params = SamplingParams(max_tokens=max_tokens)
    return [Sequence(index, ids, params, max_tokens, set(), None) for index, ids in enumerate(PROMPTS)]


def _run(model: LanguageModel, max_tokens: int) -> tuple[list[Tensor], list[int]]:
    """Return the logits of every step, and how many slots the cache had by then."""
    sequences = _sequences(max_tokens)
    runner = Runner(model, sequences)
    steps, slots = [runner.prefill(sequences)], [runner._cache.keys.shape[3]]
    for _ in range(max_tokens - 1):
        for sequence in sequences:
            sequence.accept(sequence.choose(steps[-1][sequence.index]))
        steps.append(runner.decode(sequences))
        slots.append(runner._cache.keys.shape[3])
    return steps, slots


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 4, "qk_norm": "head"}], ids=["full", "window"])
def test_logits_are_the_same_bit_for_bit_when_the_cache_grows(
    changes: dict[str, object], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(dtype=dtype, **changes)
    whole, whole_slots = _run(model, 30)
    monkeypatch.setattr(runner_room, "_FIRST_SLOTS", 1)
    grown, grown_slots = _run(model, 30)
    assert set(whole_slots) == {37}
    assert sorted(set(grown_slots)) == [8, 16, 32, 37]
    assert all(torch.equal(first, second) for first, second in zip(whole, grown, strict=True))


def test_cache_takes_what_the_prompts_need_when_the_answer_may_be_far_longer() -> None:
    sequences = _sequences(10**12)
    runner = Runner(tiny_model(), sequences)
    runner.prefill(sequences)
    assert runner._cache.keys.shape[3] == 7 + 256


def test_generation_is_refused_with_the_bytes_when_the_cache_does_not_fit(
    ids_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_room, "_FIRST_SLOTS", 2**50)
    ids_llm.model.config = ids_llm.config = ids_llm.config.model_copy(update={"max_position_embeddings": 2**50})
    with pytest.raises(MemoryBudgetError, match=r"keys and values of 2 x \d+ tokens: \d+ TiB") as raised:
        ids_llm.generate([[1], [2]], max_tokens=None)
    assert "max_tokens" in raised.value.hint
