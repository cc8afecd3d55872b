"""How the rows of routed pairs are grouped: the record that `ops/permute.py` makes and explains."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Permutation:
    """How N routed pairs of T tokens are grouped by expert.

    Attributes:
        token_ids_N: token of each row, rows grouped by expert and, within an expert, by token.
        inverse_N: row of each pair, pairs in token order.
        starts_T: where each token's pairs start.
        counts_E: rows of each expert.
    """

    token_ids_N: Tensor
    inverse_N: Tensor
    starts_T: Tensor
    counts_E: Tensor
