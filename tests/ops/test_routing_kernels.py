"""Choice and grouping by the compiled library: equal to torch's, which the oracles hold, bit for bit."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from moesaic.errors import UnsupportedError
from moesaic.ops.cpu import routing
from moesaic.ops.cpu.library import load_library
from moesaic.ops.permute import group_by_expert
from moesaic.ops.route import top_k

pytestmark = pytest.mark.skipif(load_library() is None, reason="this installation has no compiled kernels")


def _torch_top_k(scores: torch.Tensor, k: int) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOESAIC_ISA", "none")
        return top_k(scores, k)


@given(st.data())
def test_choice_equals_torchs_when_scores_tie_and_are_no_numbers(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(1, columns))
    values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), float("-inf"), 1e-42])
    rows = data.draw(st.lists(st.lists(values, min_size=columns, max_size=columns), min_size=1, max_size=4))
    scores = torch.tensor(rows)
    assert torch.equal(routing.top_k(scores, k), _torch_top_k(scores, k))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_choice_equals_torchs_when_threads_share_the_rows(threads: int) -> None:
    scores = torch.randn(1001, 67, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(routing.top_k(scores.t().contiguous().t(), 9), _torch_top_k(scores, 9))
    finally:
        torch.set_num_threads(before)


@given(st.data())
def test_grouping_equals_torchs_when_tokens_have_any_number_of_pairs(data: st.DataObject) -> None:
    num_tokens, num_experts = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 7))
    tokens = sorted(data.draw(st.lists(st.integers(0, num_tokens - 1), max_size=30)))
    experts = [data.draw(st.integers(0, num_experts - 1)) for _ in tokens]
    pairs = torch.tensor(tokens, dtype=torch.int64), torch.tensor(experts, dtype=torch.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOESAIC_ISA", "none")
        expected = group_by_expert(*pairs, num_tokens, num_experts)
    found = routing.group_by_expert(*pairs, num_tokens, num_experts)
    parts = expected.token_ids_N, expected.inverse_N, expected.starts_T, expected.counts_E
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, parts, strict=True))


@pytest.mark.parametrize(
    ("tokens", "experts"), [([0, 1], [0, 3]), ([0, 1], [0, -1]), ([1, 0], [0, 0]), ([0, 2], [0, 0]), ([-1, 0], [0, 0])]
)
def test_grouping_is_refused_when_an_id_is_out_of_place(tokens: list[int], experts: list[int]) -> None:
    with pytest.raises(UnsupportedError, match="grouping rows by expert"):
        routing.group_by_expert(torch.tensor(tokens), torch.tensor(experts), 2, 3)


@pytest.mark.parametrize("name", ["token_ids_N", "expert_ids_N"])
def test_ids_are_refused_with_the_name_when_they_are_no_integers(name: str) -> None:
    pairs = {"token_ids_N": torch.tensor([0]), "expert_ids_N": torch.tensor([0])}
    pairs[name] = pairs[name].int()
    with pytest.raises(UnsupportedError, match=f"{name} holds int32"):
        group_by_expert(**pairs, num_tokens=1, num_experts=1)


def test_operators_pass_torchs_check() -> None:
    scores = torch.randn(5, 7)
    torch.library.opcheck(torch.ops.moesaic.top_k.default, (scores, 3))
    pairs = torch.tensor([0, 0, 1]), torch.tensor([2, 0, 1])
    torch.library.opcheck(torch.ops.moesaic.group_by_expert.default, (*pairs, 2, 3))
