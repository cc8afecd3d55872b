"""Which part of a source is kept for evaluation; the same for every run over the same text.

A source of many documents gives whole documents, so that nothing of a held-out one is trained on. A share
of 1/50 takes one of every fifty, at a place that a hash decides: an even share, without the pattern of a
fixed step.

    documents   0 ······· 49 | 50 ······ 99 | 100 ···
    held out         17      |    61        |   139

A source of few documents gives the end of each.
"""

import hashlib
from dataclasses import dataclass
from fractions import Fraction

MIN_WHOLE_DOCUMENTS = 100


@dataclass(frozen=True)
class HeldOutRule:
    """Decides for each document, by its number.

    Attributes:
        share: part of the text that is held out, at least 0 and less than 1.
        whole_documents: hold out whole documents; otherwise the end of each.
    """

    share: Fraction
    whole_documents: bool

    def num_held_out_tokens(self, document: int, num_tokens: int) -> int:
        """Return how many of a document's last tokens are held out, from none to all of them."""
        if not self.whole_documents:
            return num_tokens * self.share.numerator // self.share.denominator
        return num_tokens if self._takes(document) else 0

    def _takes(self, document: int) -> bool:
        taken, base = self.share.numerator, self.share.denominator
        if taken == 0:
            return False
        stretch = document * taken // base
        first = -(-stretch * base // taken)
        last = -(-(stretch + 1) * base // taken) - 1
        drawn = int.from_bytes(hashlib.blake2b(str(stretch).encode(), digest_size=8).digest(), "big")
        return document == first + drawn % (last - first + 1)


def choose_rule(share: float, has_many_documents: bool) -> HeldOutRule:
    """Return the rule for a source; `has_many_documents` means at least MIN_WHOLE_DOCUMENTS."""
    exact = Fraction(share).limit_denominator(10**6)
    return HeldOutRule(exact, has_many_documents)
