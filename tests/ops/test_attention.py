"""Attention and its masks against loops over single queries."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

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
@pytest.mark.parametrize("positions", [[[6], [6]], [[6], [3]], [[4, 5, 6], [0, 1, 2]], [[*range(7)]] * 2])
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


@pytest.mark.parametrize("length", [1, 2, 9])
def test_mask_is_left_to_the_kernel_when_an_empty_cache_is_filled(length: int) -> None:
    mask = build_mask(torch.arange(length).expand(2, length), length, window=length, cached=True)
    assert mask.allowed is None
    assert mask.causal


def test_mask_is_made_of_bools_alone_when_it_is_large() -> None:
    class Pairs(TorchDispatchMode):
        """Collects the dtypes of everything that has an entry for each pair of query and key."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if out.numel() >= 50 * 50:
                dtypes.add(out.dtype)
            return out

    dtypes: set[torch.dtype] = set()
    with Pairs():
        build_mask(torch.arange(50, 100).unsqueeze(0), 100, window=30, cached=True)
        build_mask(torch.arange(50).unsqueeze(0), 50, 30, torch.zeros(1, 50, dtype=torch.int64))
    assert dtypes == {torch.bool}


def test_mask_is_empty_when_one_query_sees_the_whole_cache() -> None:
    mask = build_mask(torch.tensor([[3], [3]]), 4, cached=True)
    assert mask.allowed is None
    assert not mask.causal
