"""Attention whose projections are one product."""

import gc
import weakref
from typing import Any

import pytest
import torch

from moesaic.models.model import LanguageModel
from moesaic.nn.attention import SelfAttention
from moesaic.testing.tiny import tiny_model

FORMS: list[dict[str, Any]] = [
    {},
    {"attention_bias": True},
    {"qk_norm": "width", "clip_qkv": 1.0},
    {"num_key_value_heads": 4},
]


def _attentions(model: LanguageModel) -> list[SelfAttention]:
    return [module for module in model.modules() if isinstance(module, SelfAttention)]


@pytest.mark.parametrize("changes", FORMS, ids=["plain", "biased", "normed and clipped", "one head a query"])
@pytest.mark.parametrize("length", [1, 7, 40])
@torch.no_grad()
def test_joined_projections_change_no_bit_and_no_weight(changes: dict[str, Any], length: int) -> None:
    model = tiny_model(dtype=torch.bfloat16, **changes)
    ids_BS = torch.arange(length).unsqueeze(0) % 61
    before, state = model(ids_BS), {name: value.clone() for name, value in model.state_dict().items()}
    for attention in _attentions(model):
        attention.join_projections()
    assert torch.equal(model(ids_BS), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_joined_projections_take_no_more_memory() -> None:
    attention = _attentions(tiny_model().requires_grad_(True))[0]
    former = [weakref.ref(part.weight) for part in (attention.query, attention.key, attention.value)]
    attention.join_projections()
    gc.collect()
    assert [each() for each in former] == [None, None, None]
    parts = [part.weight.untyped_storage().data_ptr() for part in (attention.query, attention.key, attention.value)]
    assert len(set(parts)) == 1
    assert attention._joined is not None
    assert attention._joined[0].untyped_storage().data_ptr() == parts[0]
