"""The language model: its head, its size, where it is built."""

import torch

from moesaic.models.model import build_model
from moesaic.testing.tiny import tiny_config, tiny_model


def test_head_is_the_embedding_table_when_tied() -> None:
    model = tiny_model(tie_word_embeddings=True)
    assert "head.weight" not in model.state_dict()
    hidden = torch.randn(2, 16)
    assert torch.equal(model.logits(hidden), hidden @ model.decoder.embedding.weight.t())


def test_logits_have_one_row_a_position_when_ids_are_given() -> None:
    assert tiny_model()(torch.zeros(2, 7, dtype=torch.int64)).shape == (2, 7, 61)


def test_model_holds_no_memory_when_built_on_meta() -> None:
    assert all(parameter.is_meta for parameter in build_model(tiny_config(), device="meta").parameters())


def test_active_parameters_leave_idle_experts_out_when_counted() -> None:
    model = tiny_model(num_hidden_layers=3, mlp_only_layers=[1])
    total, active = model.num_parameters()
    assert total == sum(parameter.numel() for parameter in model.parameters())
    # Two mixtures, three idle experts each, three matrices of 16 x 12.
    assert total - active == 2 * 3 * 3 * 16 * 12


def test_all_parameters_are_active_when_a_model_is_dense() -> None:
    total, active = tiny_model(num_experts=0, num_experts_per_tok=0).num_parameters()
    assert total == active
