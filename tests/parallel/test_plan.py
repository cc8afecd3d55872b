"""Degrees of parallelism: what is filled in, and what is refused."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.config.parallel import ParallelConfig
from moesaic.errors import ConfigError
from moesaic.models.model import build_model
from moesaic.parallel.plan import Degrees, plan_degrees
from moesaic.testing.tiny import tiny_config


def _plan(num_ranks: int, num_experts: int = 8, **degrees: int) -> Degrees:
    return plan_degrees(ParallelConfig(**degrees), tiny_config(num_experts=num_experts), num_ranks)


@given(num_ranks=st.integers(1, 4096), num_experts=st.integers(2, 300))
def test_ranks_are_all_used_when_nothing_is_asked_for(num_ranks: int, num_experts: int) -> None:
    degrees = _plan(num_ranks, num_experts)
    assert degrees.data_replicate * degrees.data_shard == degrees.size == num_ranks
    assert degrees.expert * degrees.expert_replicate == num_ranks
    assert num_experts % degrees.expert == 0
    larger = [each for each in range(degrees.expert + 1, num_ranks + 1) if num_ranks % each == num_experts % each == 0]
    assert not larger


def test_degrees_are_those_asked_for_when_they_fit() -> None:
    degrees = _plan(8, expert=2, data_shard=4)
    assert (degrees.data_replicate, degrees.data_shard, degrees.expert, degrees.expert_replicate) == (2, 4, 2, 4)


def test_dense_model_has_no_expert_axis_when_planned() -> None:
    assert _plan(4, 0).expert == 1


@pytest.mark.parametrize(
    ("num_ranks", "degrees", "text", "hint"),
    [
        (6, {"data_shard": 4}, "data_shard is 4, which does not divide the 6 ranks", "choose one of 1, 2, 3, 6"),
        (4, {"data_shard": 2, "data_replicate": 3}, "3 times parallel.data_shard 2 is 6, but there are 4", "start 6"),
        (4, {"expert": 3}, "expert is 3, which does not divide the 4 ranks", "choose one of 1, 2, 4"),
        (12, {"expert": 3}, "expert is 3, which does not divide the 8 experts", "choose one of 1, 2, 4"),
        (2, {"expert": 4}, "expert is 4, which does not divide the 2 ranks", "choose one of 1, 2"),
        (3, {"tensor": 2}, "tensor is 2, which does not divide the 3 ranks", "choose one of 1$"),
        (4, {"tensor": 4}, "tensor is 4, which does not divide the 2 key/value heads", "choose one of 1, 2$"),
        (8, {"tensor": 2, "data_shard": 3}, "data_shard is 3, which does not divide the 4 ranks that", "of 1, 2, 4,"),
        (8, {"tensor": 2, "data_shard": 2, "data_replicate": 4}, "4 times parallel.data_shard 2 times .* is 16", "16"),
    ],
)
def test_degrees_are_refused_when_they_do_not_fit(
    num_ranks: int, degrees: dict[str, int], text: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        _plan(num_ranks, **degrees)
    assert re.search(hint, caught.value.hint)


def test_widths_that_ranks_share_are_looked_at_when_planned() -> None:
    dense = tiny_config(num_experts=0, intermediate_size=25)
    with pytest.raises(ConfigError, match="divide the 25 channels of a dense MLP"):
        plan_degrees(ParallelConfig(tensor=2), dense, 2)
    shared = tiny_config(num_experts=8, shared_expert_intermediate_size=9)
    with pytest.raises(ConfigError, match="divide the 9 channels of a shared expert"):
        plan_degrees(ParallelConfig(tensor=2), shared, 2)
    assert plan_degrees(ParallelConfig(tensor=2), tiny_config(intermediate_size=25), 2).tensor == 2, "has no dense MLP"


def test_parameters_of_a_rank_are_its_experts_and_its_share_of_the_rest_when_counted() -> None:
    model = build_model(tiny_config(num_experts=8), device="meta")
    experts = sum(each.numel() for name, each in model.named_parameters() if ".experts." in name)
    dense = model.num_parameters()[0] - experts
    assert Degrees(1, 4, 2).own_parameters(model) == -(-dense // 4) + experts // 2
    assert Degrees(4, 1, 1).own_parameters(model) == dense + experts
    attention = sum(each.numel() for name, each in model.named_parameters() if ".attention." in name)
    assert Degrees(2, 1, 2, tensor=2).own_parameters(model) == dense - attention // 2 + experts // 2
    assert (
        Degrees(1, 2, 2, tensor=2).own_parameters(model) == -(-(dense - attention) // 4) + attention // 4 + experts // 2
    )


def test_parts_of_table_and_head_are_counted_when_they_are_split() -> None:
    config = tiny_config(num_experts=8)
    degrees = plan_degrees(ParallelConfig(embedding="split", data_shard=2), config, 4)
    model = build_model(config, device="meta")
    table = config.vocab_size * config.hidden_size
    whole = Degrees(degrees.data_replicate, 2, degrees.expert).own_parameters(model)
    assert degrees.own_parameters(model) == whole - table + table // 2


@pytest.mark.parametrize(
    ("num_ranks", "changes", "text", "hint"),
    [
        (2, {"tie_word_embeddings": True}, "table is its head too", "tie_word_embeddings = false"),
        (3, {}, "3 ranks do not divide the 16 columns of the table", "start one of 1, 2, 4, 8, 16 ranks"),
        (4, {"vocab_size": 5}, "a vocabulary of 5 leaves some of 4 ranks without a row", "'whole'"),
    ],
)
def test_split_embedding_is_refused_when_a_rank_would_have_no_part(
    num_ranks: int, changes: dict[str, Any], text: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        plan_degrees(ParallelConfig(embedding="split"), tiny_config(num_experts=8, **changes), num_ranks)
    assert hint in caught.value.hint
