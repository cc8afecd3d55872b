"""Readers of the two common layouts of 4-bit checkpoints, GPTQ's and AWQ's, as float weights [out, in].

Both keep q of 0..15, eight in an int32, lowest bits first, and for each group of inputs and each output a zero point
and a scale: weight = (q - zero) * scale. They differ in what the eight are:

    GPTQ  qweight [in / 8, out]   eight inputs in order     qzeros [groups, out / 8]   zero - 1 of outputs in order
    AWQ   qweight [in, out / 8]   outputs 0 2 4 6 1 3 5 7   qzeros [groups, out / 8]   zero of outputs 0 2 4 6 1 3 5 7

Sources: Frantar et al. 2022, as AutoGPTQ writes it; Lin et al. 2023, as AutoAWQ's GEMM version writes it.
"""

import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.tensor import check_tensor

_IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PER_WORD = 8


def unpack_gptq(qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None = None) -> Tensor:
    """Return float32 [out, in].

    Args:
        qweight: [in / 8, out] int32.
        qzeros: [groups, out / 8] int32.
        scales: [groups, out] of any floating dtype.
        g_idx: [in], the group of each input; None: groups follow one another.

    Raises:
        UnsupportedError: a shape or dtype is another, or an input has no group.
    """
    check_tensor("qweight", qweight, (None, None), torch.int32)
    num_inputs = qweight.shape[0] * _PER_WORD
    _check_groups(qzeros, scales, qweight.shape[1])
    if g_idx is None:
        g_idx = _follow(num_inputs, len(scales)).to(scales.device)
    check_tensor("g_idx", g_idx, (num_inputs,))
    if num_inputs and not 0 <= int(g_idx.min()) <= int(g_idx.max()) < len(scales):
        raise UnsupportedError(f"g_idx holds groups up to {int(g_idx.max())}", f"give groups of 0 to {len(scales) - 1}")
    q = _unpack(qweight.t(), _IN_ORDER)
    zeros = _unpack(qzeros, _IN_ORDER) + 1
    return _scale(q, zeros, scales, g_idx.long())


def unpack_awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Tensor:
    """Return float32 [out, in].

    Args:
        qweight: [in, out / 8] int32.
        qzeros: [groups, out / 8] int32.
        scales: [groups, out] of any floating dtype.

    Raises:
        UnsupportedError: a shape or dtype is another.
    """
    check_tensor("qweight", qweight, (None, None), torch.int32)
    _check_groups(qzeros, scales, qweight.shape[1] * _PER_WORD)
    groups = _follow(len(qweight), len(scales)).to(scales.device)
    return _scale(_unpack(qweight, _AWQ_ORDER).t(), _unpack(qzeros, _AWQ_ORDER), scales, groups)


def _check_groups(qzeros: Tensor, scales: Tensor, num_outputs: int) -> None:
    if num_outputs % _PER_WORD:
        raise UnsupportedError(f"qweight has {num_outputs} outputs", f"give a multiple of {_PER_WORD}")
    if not scales.is_floating_point():
        raise UnsupportedError(f"scales holds {scales.dtype}", "give it in a floating dtype")
    check_tensor("scales", scales, (None, num_outputs))
    check_tensor("qzeros", qzeros, (len(scales), num_outputs // _PER_WORD), torch.int32)


def _follow(num_inputs: int, num_groups: int) -> Tensor:
    """Return the group of each input where equal groups follow one another."""
    if num_groups == 0 or num_inputs % num_groups:
        raise UnsupportedError(f"{num_inputs} inputs are no {num_groups} equal groups", "give scales of each group")
    return torch.arange(num_inputs) // max(1, num_inputs // num_groups)


def _unpack(words: Tensor, order: tuple[int, ...]) -> Tensor:
    """[rows, n] int32 as [rows, 8 n]: nibble i of a word is value order[i] of its eight."""
    nibbles = words.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32, device=words.device) & 15
    return nibbles[..., torch.tensor(order).argsort()].flatten(1)


def _scale(q: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor) -> Tensor:
    return (q - zeros[groups].t()).float() * scales[groups].t().float()
