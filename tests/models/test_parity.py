"""The same logits as transformers, for every family, on configurations drawn at random."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.checkpoint.load import load_model
from moesaic.testing.tolerance import TOLERANCES, relative_error
from tests.models.drawn_config import FAMILIES, draw_config
from tests.models.foreign import build_foreign, foreign_logits, save_foreign


def _error_of(family: str, config: dict[str, Any], dtype: torch.dtype) -> float:
    theirs = build_foreign(family, config, dtype)
    ids_BS = torch.randint(config["vocab_size"], (2, 13))
    with tempfile.TemporaryDirectory() as folder:
        save_foreign(theirs, Path(folder))
        ours = load_model(folder)
    return relative_error(ours(ids_BS), foreign_logits(theirs, ids_BS))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=100)
@given(data=st.data())
def test_logits_equal_those_of_transformers_when_a_config_is_drawn(family: str, data: st.DataObject) -> None:
    config = data.draw(draw_config(family))
    assert _error_of(family, config, torch.float32) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_near_those_of_transformers_when_weights_are_float64(family: str) -> None:
    config = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "intermediate_size": 8, "max_position_embeddings": 32}
    # transformers keeps its rotary tables in float32, hence not the tolerance of float64.
    assert _error_of(family, config, torch.float64) <= 1e-6
