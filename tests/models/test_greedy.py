"""The same greedy tokens as transformers, with and without a cache, alone and in a ragged batch."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.checkpoint.load import load_model
from tests.models.drawn_config import FAMILIES, draw_config
from tests.models.foreign import build_foreign, foreign_greedy, save_foreign
from tests.models.greedy import greedy_with_cache, greedy_without_cache

NUM_TOKENS = 8


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15)
@given(data=st.data())
def test_greedy_tokens_are_the_same_with_and_without_cache_when_a_batch_is_ragged(
    family: str, data: st.DataObject
) -> None:
    config = data.draw(draw_config(family))
    theirs = build_foreign(family, config)
    with tempfile.TemporaryDirectory() as folder:
        save_foreign(theirs, Path(folder))
        ours = load_model(folder)
    prompts = [torch.randint(config["vocab_size"], (length,)).tolist() for length in (5, 9, 1)]

    expected = [foreign_greedy(theirs, prompt, NUM_TOKENS) for prompt in prompts]
    assert [greedy_without_cache(ours, prompt, NUM_TOKENS) for prompt in prompts] == expected
    assert [greedy_with_cache(ours, [prompt], NUM_TOKENS)[0] for prompt in prompts] == expected
    assert greedy_with_cache(ours, prompts, NUM_TOKENS) == expected
