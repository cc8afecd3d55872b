"""Oracle of `ops/attention.py`: one query of one head at a time, over the keys that a rule lets it see."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def attention(
    query_BSHC: Tensor, key_BGZC: Tensor, value_BGZC: Tensor, sees: Callable[[int, int, int], bool]
) -> Tensor:
    """Return [B, S, H, C]; `sees(sequence, query, key)` is the rule. Every query must see a key."""
    batch, length, heads, channels = query_BSHC.shape
    groups, num_keys = key_BGZC.shape[1:3]
    out_BSHC = torch.empty_like(query_BSHC)
    for sequence in range(batch):
        for head in range(heads):
            group = head * groups // heads
            for query in range(length):
                seen = [key for key in range(num_keys) if sees(sequence, query, key)]
                scores = key_BGZC[sequence, group, seen] @ query_BSHC[sequence, query, head]
                weights = (scores / math.sqrt(channels)).softmax(0)
                out_BSHC[sequence, query, head] = weights @ value_BGZC[sequence, group, seen]
    return out_BSHC
