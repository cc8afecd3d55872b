"""The kernels' index arithmetic, exactly equal to loops over lists."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moesaic.errors import ConfigError
from moesaic.ops import route as same_on_cpu
from moesaic.ops.gpu.refusal import DTYPES, MAX_COLUMNS
from moesaic.ops.gpu.route import group_by_expert, top_k
from moesaic.ops.permute import group_by_expert as group_on_cpu
from moesaic.ops.reference import route as oracle
from tests.ops.gpu.cases import Pairs, draw_pairs, each_case
from tests.ops.gpu.device import DEVICE, each_dtype

# Few different values, so that ties are common; both zeros, which are equal; what no score should be.
TIED = st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.25, 3.0, math.inf, -math.inf, 1e-45, -1e-45])
ANY = st.floats(width=32, allow_nan=False)


@st.composite
def _draw_scores(draw: st.DrawFn) -> Tensor:
    num_rows, num_columns = draw(st.integers(0, 5)), draw(st.sampled_from([1, 2, 3, 7, 8, 13]))
    values = st.lists(draw(st.sampled_from([TIED, ANY])), min_size=num_columns, max_size=num_columns)
    rows = draw(st.lists(values, min_size=num_rows, max_size=num_rows))
    return torch.tensor(rows, dtype=torch.float32).view(num_rows, num_columns)


@given(scores_TE=_draw_scores(), data=st.data(), dtype=st.sampled_from(DTYPES))
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_top_k_equals_a_stable_sort_when_scores_tie(scores_TE: Tensor, data: st.DataObject, dtype: torch.dtype) -> None:
    k = data.draw(st.integers(1, scores_TE.shape[1]))
    scores_TE = scores_TE.to(dtype)
    assert torch.equal(top_k(scores_TE.to(DEVICE), k).cpu(), oracle.top_k(scores_TE, k))


@each_dtype
def test_top_k_equals_a_stable_sort_when_rows_fill_several_programs(dtype: torch.dtype) -> None:
    scores_TE = torch.randn(300, 37).to(dtype)
    assert torch.equal(top_k(scores_TE.to(DEVICE), 6).cpu(), oracle.top_k(scores_TE, 6))


@pytest.mark.parametrize("num_columns", [257, MAX_COLUMNS])
def test_top_k_takes_the_lowest_ids_when_all_scores_are_equal(num_columns: int) -> None:
    assert top_k(torch.zeros(2, num_columns, device=DEVICE), 5).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_top_k_equals_the_cpu_when_nan_has_any_sign() -> None:
    infinity = torch.tensor(math.inf)
    for nan in (torch.tensor(math.nan), infinity - infinity, -torch.tensor(math.nan)):
        scores_TE = torch.tensor([[1.0, 0.0, math.inf, 0.0]])
        scores_TE[0, 1] = scores_TE[0, 3] = nan
        assert top_k(scores_TE.to(DEVICE), 3).tolist() == [[1, 3, 2]] == same_on_cpu.top_k(scores_TE, 3).tolist()


def test_top_k_reads_the_right_columns_when_scores_are_a_view() -> None:
    scores_ET = torch.randn(5, 3)
    assert torch.equal(top_k(scores_ET.to(DEVICE).t(), 2).cpu(), oracle.top_k(scores_ET.t(), 2))


@pytest.mark.parametrize("k", [0, 4])
def test_top_k_is_refused_when_k_is_outside_the_columns(k: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot choose {k} of 3 columns") as caught:
        top_k(torch.zeros(1, 3, device=DEVICE), k)
    assert caught.value.hint == "k must lie within 1..3"


def _assert_grouped(pairs: Pairs) -> None:
    tokens, experts = pairs.token_ids_N.tolist(), pairs.expert_ids_N.tolist()
    found = group_by_expert(*pairs.to(DEVICE))
    order = sorted(range(len(tokens)), key=lambda pair: (experts[pair], pair))
    assert found.token_ids_N.tolist() == [tokens[pair] for pair in order]
    assert [order[row] for row in found.inverse_N.tolist()] == list(range(len(tokens)))
    assert found.counts_E.tolist() == [experts.count(expert) for expert in range(pairs.num_experts)]
    assert found.starts_T.tolist() == [sum(other < token for other in tokens) for token in range(pairs.num_tokens)]
    # And in dtype: one stands in for the other.
    for name, expected in vars(group_on_cpu(*pairs.to("cpu"))).items():
        assert torch.equal(getattr(found, name).cpu(), expected)


@each_case
def test_groups_are_in_order_when_routing_is(case) -> None:  # type: ignore[no-untyped-def]
    _assert_grouped(case())


@given(
    num_tokens=st.integers(0, 90), num_experts=st.sampled_from([1, 2, 13, 33]), data=st.data(), seed=st.integers(0, 9)
)
def test_groups_are_in_order_when_choices_are_drawn(
    num_tokens: int, num_experts: int, data: st.DataObject, seed: int
) -> None:
    _assert_grouped(draw_pairs(num_tokens, num_experts, data.draw(st.integers(1, min(4, num_experts))), seed))
