"""GPTQ's and AWQ's layouts, read back from packers that follow the formats' definitions word by word."""

import pytest
import torch
from torch import Tensor

from moesaic.errors import UnsupportedError
from moesaic.ops.packed import unpack_awq, unpack_gptq

IN, OUT, GROUPS = 32, 16, 4


def _pack(values: list[int]) -> int:
    """Put eight values of 0..15 into an int32, the first into the lowest bits."""
    word = sum(value << 4 * place for place, value in enumerate(values))
    return word - 2**32 if word >= 2**31 else word


def _draw() -> tuple[Tensor, Tensor, Tensor]:
    """Draw q [out, in], zeros and scales [groups, out]."""
    return torch.randint(0, 16, (OUT, IN)), torch.randint(1, 16, (GROUPS, OUT)), torch.rand(GROUPS, OUT).half()


def _expected(q: Tensor, zeros: Tensor, scales: Tensor, groups: list[int]) -> Tensor:
    rows = [[(q[o, i] - zeros[g, o]) * scales[g, o].float() for i, g in enumerate(groups)] for o in range(OUT)]
    return torch.tensor(rows)


def _gptq(q: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    words = [[_pack(q[o, 8 * i : 8 * i + 8].tolist()) for o in range(OUT)] for i in range(IN // 8)]
    zero_words = [[_pack((zeros[g, 8 * o : 8 * o + 8] - 1).tolist()) for o in range(OUT // 8)] for g in range(GROUPS)]
    return torch.tensor(words, dtype=torch.int32), torch.tensor(zero_words, dtype=torch.int32)


def _awq_word(eight: Tensor) -> int:
    return _pack([int(eight[channel]) for channel in (0, 2, 4, 6, 1, 3, 5, 7)])


def _awq(q: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    words = [[_awq_word(q[8 * o : 8 * o + 8, i]) for o in range(OUT // 8)] for i in range(IN)]
    zero_words = [[_awq_word(zeros[g, 8 * o : 8 * o + 8]) for o in range(OUT // 8)] for g in range(GROUPS)]
    return torch.tensor(words, dtype=torch.int32), torch.tensor(zero_words, dtype=torch.int32)


def test_gptq_weights_are_read_when_groups_follow_one_another() -> None:
    q, zeros, scales = _draw()
    expected = _expected(q, zeros, scales, [i // (IN // GROUPS) for i in range(IN)])
    assert torch.equal(unpack_gptq(*_gptq(q, zeros), scales), expected)


def test_gptq_weights_are_read_when_inputs_were_ordered_by_importance() -> None:
    q, zeros, scales = _draw()
    groups = torch.randint(0, GROUPS, (IN,), dtype=torch.int32)
    found = unpack_gptq(*_gptq(q, zeros), scales, groups)
    assert torch.equal(found, _expected(q, zeros, scales, groups.tolist()))


def test_awq_weights_are_read_when_packed_by_its_order() -> None:
    q, zeros, scales = _draw()
    expected = _expected(q, zeros, scales, [i // (IN // GROUPS) for i in range(IN)])
    assert torch.equal(unpack_awq(*_awq(q, zeros), scales), expected)


def _words(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((_words(4, 16).long(), _words(4, 2), torch.ones(4, 16)), "qweight holds int64"),
        ((_words(4, 12), _words(4, 2), torch.ones(4, 12)), "qweight has 12 outputs"),
        ((_words(4, 16), _words(4, 2), _words(4, 16)), "scales holds torch.int32"),
        ((_words(4, 16), _words(4, 2), torch.ones(4, 8)), r"scales has the shape \(4, 8\)"),
        ((_words(4, 16), _words(3, 2), torch.ones(4, 16)), r"qzeros has the shape \(3, 2\)"),
        ((_words(4, 16), _words(5, 2), torch.ones(5, 16)), "32 inputs are no 5 equal groups"),
        ((_words(4, 16), _words(4, 2), torch.ones(4, 16), _words(31)), r"g_idx has the shape \(31,\)"),
        ((_words(4, 16), _words(4, 2), torch.ones(4, 16), _words(32) + 4), "g_idx holds groups up to 4"),
    ],
)
def test_gptq_weights_are_refused_when_a_tensor_is_wrong(arguments: tuple[Tensor, ...], text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        unpack_gptq(*arguments)


def test_awq_weights_are_refused_when_a_tensor_is_wrong() -> None:
    with pytest.raises(UnsupportedError, match=r"qzeros has the shape \(4, 4\)"):
        unpack_awq(_words(32, 2), _words(4, 4), torch.ones(4, 16))
