from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.data.mix import Mixture, epoch_order

WEIGHTS = st.lists(st.integers(1, 50).map(lambda tenths: tenths / 10), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 2**32), num_samples=st.integers(1, 300))
def test_mixture_keeps_each_share_when_stopped_anywhere(weights: list, seed: int, num_samples: int) -> None:
    mixture = Mixture(weights, seed)
    placed = [mixture.place(sample) for sample in range(num_samples)]
    for part, weight in enumerate(weights):
        count = sum(owner == part for owner, _ in placed)
        assert abs(count - num_samples * weight / sum(weights)) <= len(weights)


@settings(max_examples=80, deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 2**32))
def test_mixture_numbers_each_parts_samples_without_a_gap(weights: list, seed: int) -> None:
    seen = [0] * len(weights)
    mixture = Mixture(weights, seed)
    for sample in range(200):
        part, index = mixture.place(sample)
        assert index == seen[part]
        seen[part] += 1


def test_mixture_exhausts_every_part_at_once_when_weights_are_their_lengths() -> None:
    lengths = [7, 1, 1_000_003]
    mixture = Mixture([Fraction(length) for length in lengths])
    total = sum(lengths)
    ends = [mixture.place(total - back) for back in range(1, 4)]
    assert mixture.place(total) in [(0, 7), (1, 1), (2, 1_000_003)]
    assert all(index < lengths[part] for part, index in ends)


def test_mixture_interleaves_otherwise_when_the_seed_differs() -> None:
    orders = {tuple(Mixture([1, 3, 5], seed).place(n)[0] for n in range(50)) for seed in range(10)}
    assert len(orders) > 5


@pytest.mark.parametrize("num_sequences", [1, 2, 3, 4, 5, 16, 17, 100, 257])
@pytest.mark.parametrize("seed", [0, 1])
def test_epoch_takes_each_sequence_once_when_its_length_is(num_sequences: int, seed: int) -> None:
    for epoch in range(3):
        first = epoch * num_sequences
        order = [epoch_order(first + n, num_sequences, seed, part=0) for n in range(num_sequences)]
        assert sorted(order) == list(range(num_sequences))


def test_epoch_has_another_order_when_seed_part_or_epoch_differ() -> None:
    def order(seed: int, part: int, epoch: int) -> tuple[int, ...]:
        return tuple(epoch_order(epoch * 50 + n, 50, seed, part) for n in range(50))

    orders = {order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1), tuple(range(50))}
    assert len(orders) == 5
    assert order(0, 0, 0) == order(0, 0, 0)


def test_epoch_order_is_what_it_was_when_checkpoints_were_written() -> None:
    """A change of these numbers would silently resume every run at other data."""
    assert [epoch_order(n, 10, seed=7, part=0) for n in range(12)] == [1, 7, 4, 8, 9, 0, 3, 5, 2, 6, 1, 0]
    mixture = Mixture([1, 2], seed=7)
    assert [mixture.place(n)[0] for n in range(8)] == [0, 1, 1, 0, 1, 1, 0, 1]
