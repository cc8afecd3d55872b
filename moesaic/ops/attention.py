"""Grouped-query attention on torch's fused kernel, and the masks that it needs.

A mask is built once for a forward pass and shared by all layers with the same window. Where plain causal
attention is enough there is no mask at all, because the fused kernel is faster without one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AttentionMask:
    """Which keys each query sees.

    Attributes:
        allowed: [B or 1, 1, S, Z] bool, or None where `causal` says it all.
        causal: queries and keys are the same positions, and each query sees itself and all before it.
    """

    allowed: Tensor | None
    causal: bool


def build_mask(
    query_positions_BS: Tensor,
    num_keys: int,
    window: int | None = None,
    document_ids_BS: Tensor | None = None,
    cached: bool = False,
) -> AttentionMask:
    """Build the mask of one window size.

    Args:
        query_positions_BS: index of each query among its sequence's keys.
        num_keys: Z, keys held per sequence.
        window: a query sees this many last keys, itself included; None: all.
        document_ids_BS: with S == Z, a query sees only keys of its own document.
        cached: keys come from a cache, so that positions may differ between rows.
    """
    length = query_positions_BS.shape[1]
    keys_Z = torch.arange(num_keys, device=query_positions_BS.device)
    if window is not None and window >= num_keys:
        window = None
    if window is None and document_ids_BS is None:
        # An empty cache is filled like none: every query stands at its own key.
        if not cached or (length == num_keys and bool((query_positions_BS == keys_Z).all())):
            return AttentionMask(None, causal=True)
        if length == 1 and bool((query_positions_BS == num_keys - 1).all()):
            return AttentionMask(None, causal=False)
    # Compared by broadcasting: distances would take eight bytes for each pair, the mask takes one.
    queries_BS1 = query_positions_BS.unsqueeze(-1)
    allowed_BSZ = keys_Z <= queries_BS1
    if window is not None:
        allowed_BSZ &= keys_Z > queries_BS1 - window
    if document_ids_BS is not None:
        allowed_BSZ = allowed_BSZ & (document_ids_BS.unsqueeze(2) == document_ids_BS.unsqueeze(1))
    return AttentionMask(allowed_BSZ.unsqueeze(1), causal=False)


def attention(query_BSHC: Tensor, key_BGZC: Tensor, value_BGZC: Tensor, mask: AttentionMask) -> Tensor:
    """Return [B, S, H, C]: softmax(q k / sqrt(C)) v, query head h reading key/value head h * G / H."""
    out_BHSC = functional.scaled_dot_product_attention(
        query_BSHC.transpose(1, 2),
        key_BGZC,
        value_BGZC,
        attn_mask=mask.allowed,
        is_causal=mask.causal,
        enable_gqa=query_BSHC.shape[2] != key_BGZC.shape[1],
    )
    return out_BHSC.transpose(1, 2)
