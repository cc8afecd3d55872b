"""Attention and its masks against loops over single queries."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.ops.attention import attention, build_mask
from moesaic.ops.reference import attention as oracle
from moesaic.testing.tolerance import is_close


@given(
    groups=st.sampled_from([1, 2, 3]),
    queries_per_group=st.sampled_from([1, 2]),
    window=st.sampled_from([None, 1, 3, 5, 9]),
    packed=st.booleans(),
)
def test_attention_equals_the_oracle_when_nothing_is_cached(
    groups: int, queries_per_group: int, window: int | None, packed: bool
) -> None:
    query_BSHC = torch.randn(2, 5, groups * queries_per_group, 4)
    key_BGZC, value_BGZC = torch.randn(2, 2, groups, 5, 4)
    documents_BS = torch.tensor([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]])
    mask = build_mask(torch.arange(5).unsqueeze(0), 5, window, documents_BS if packed else None)

    def sees(sequence: int, query: int, key: int) -> bool:
        near = 0 <= query - key < (window or 5)
        return near and (not packed or bool(documents_BS[sequence, query] == documents_BS[sequence, key]))

    found = attention(query_BSHC, key_BGZC, value_BGZC, mask)
    assert is_close(found, oracle.attention(query_BSHC, key_BGZC, value_BGZC, sees))


@pytest.mark.parametrize("window", [None, 2, 7])
@pytest.mark.parametrize("positions", [[[6], [6]], [[6], [3]], [[4, 5, 6], [0, 1, 2]]])
def test_attention_sees_each_rows_own_past_when_keys_are_cached(positions: list[list[int]], window: int | None) -> None:
    positions_BS = torch.tensor(positions)
    query_BSHC = torch.randn(2, positions_BS.shape[1], 4, 6)
    key_BGZC, value_BGZC = torch.randn(2, 2, 2, 7, 6)
    mask = build_mask(positions_BS, 7, window, cached=True)

    def sees(sequence: int, query: int, key: int) -> bool:
        return 0 <= positions[sequence][query] - key < (window or 7)

    found = attention(query_BSHC, key_BGZC, value_BGZC, mask)
    assert is_close(found, oracle.attention(query_BSHC, key_BGZC, value_BGZC, sees))


def test_mask_is_left_to_the_kernel_when_plain_causal_attention_is_enough() -> None:
    positions_BS = torch.arange(4).unsqueeze(0)
    for window in (None, 4, 9):
        mask = build_mask(positions_BS, 4, window)
        assert mask.allowed is None
        assert mask.causal


def test_mask_is_empty_when_one_query_sees_the_whole_cache() -> None:
    mask = build_mask(torch.tensor([[3], [3]]), 4, cached=True)
    assert mask.allowed is None
    assert not mask.causal
