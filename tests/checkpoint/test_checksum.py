"""The checksum of a checkpoint's files."""

import os
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.checkpoint.checksum import Checksum

CONTENT = os.urandom(3 * 65536 + 700)


def _of(content: bytes) -> int:
    checksum = Checksum()
    checksum.add(memoryview(content))
    return checksum.value


@given(cuts=st.lists(st.integers(0, len(CONTENT)), max_size=8))
def test_checksum_is_the_same_when_bytes_come_in_other_portions(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(CONTENT)]
    checksum = Checksum()
    for begin, end in pairwise(edges):
        checksum.add(memoryview(CONTENT)[begin:end])
    assert checksum.value == _of(CONTENT)
    assert checksum.num_bytes == len(CONTENT)


@settings(max_examples=40)
@given(place=st.integers(0, len(CONTENT) - 1), bit=st.integers(0, 7))
def test_checksum_is_another_when_a_bit_flips_anywhere(place: int, bit: int) -> None:
    changed = bytearray(CONTENT)
    changed[place] ^= 1 << bit
    assert _of(bytes(changed)) != _of(CONTENT)


def test_checksum_is_another_when_words_or_blocks_change_places() -> None:
    words = CONTENT[8:16] + CONTENT[:8] + CONTENT[16:]
    blocks = CONTENT[65536:131072] + CONTENT[:65536] + CONTENT[131072:]
    assert len({_of(content) for content in (CONTENT, words, blocks)}) == 3


def test_checksum_is_that_of_nothing_when_nothing_came() -> None:
    assert Checksum().value == 0
