"""Which sequence is the n-th sample: arithmetic on n, so that a position alone restores the order.

Two steps, neither of which remembers anything:

    n ── Mixture.place ──> (part, i-th sample of that part) ── epoch_order ──> sequence number

The parts are chosen evenly, not drawn: after any n samples each part is within one sample per part of its
weight's share. Within a part, every epoch takes each sequence once, in another order.
"""

import hashlib
from collections.abc import Sequence
from fractions import Fraction

_ROUNDS = 6


class Mixture:
    """An even interleaving of parts by weight.

    The first part takes sample n when the whole part of n * share + offset grows, as a line is drawn on a
    grid of pixels (Bresenham, 1965); the samples it leaves are dealt to the other parts in the same way.
    """

    def __init__(self, weights: Sequence[Fraction | float], seed: int | None = None) -> None:
        """Prepare for parts with positive weights.

        Args:
            weights: relative shares.
            seed: shifts where each part's samples fall; None: no shift, so that exact shares come out even.
        """
        assert weights, "a mixture needs a part"
        exact = [w if isinstance(w, Fraction) else Fraction(w).limit_denominator(10**6) for w in weights]
        self._shares = [weight / sum(exact[k:]) for k, weight in enumerate(exact)]
        self._offsets = [0 if seed is None else _draw(seed, k) % s.denominator for k, s in enumerate(self._shares)]

    def place(self, sample: int) -> tuple[int, int]:
        """Return the part of a sample, and how many samples of that part came before."""
        last = len(self._shares) - 1
        for part in range(last):
            taken = self._num_taken(part, sample)
            if self._num_taken(part, sample + 1) > taken:
                return part, taken
            sample -= taken
        return last, sample

    def _num_taken(self, part: int, samples: int) -> int:
        share = self._shares[part]
        return (samples * share.numerator + self._offsets[part]) // share.denominator


def epoch_order(index: int, num_sequences: int, seed: int, part: int) -> int:
    """Return the sequence that is a part's `index`-th sample.

    Epoch index // num_sequences is a permutation of its own: a Feistel network over the smallest even number
    of bits that holds `num_sequences`, repeated while the result is too large (Black and Rogaway, 2002,
    "Ciphers with arbitrary finite domains"). Any entry is computed alone, so an epoch takes no memory.
    """
    epoch, value = divmod(index, num_sequences)
    half_bits = max((num_sequences - 1).bit_length() + 1, 2) // 2
    mask = (1 << half_bits) - 1
    while True:
        left, right = value >> half_bits, value & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_draw(seed, part, epoch, turn, right) & mask)
        value = left << half_bits | right
        if value < num_sequences:
            return value


def _draw(*key: int) -> int:
    digest = hashlib.blake2b(",".join(map(str, key)).encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
