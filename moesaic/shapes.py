"""The legend of shape letters.

Tensor arguments, locals and results end in these letters (`hidden_TD`, `expert_ids_TK`); parameters and
buffers never do, because their names become checkpoint keys.
"""

LETTERS = {
    "B": "sequences in a batch",
    "S": "positions of a sequence",
    "T": "tokens, flattened or packed",
    "D": "model width",
    "H": "query heads",
    "G": "key/value heads",
    "C": "channels per head",
    "V": "vocabulary",
    "E": "experts, all ranks",
    "X": "experts on this rank",
    "K": "experts chosen per token",
    "N": "routed rows: the chosen (token, expert) pairs that are kept, at most T times K",
    "W": "ranks of a group",
    "R": "rows this rank's experts receive",
    "F": "expert hidden width",
    "M": "capacity rows per expert",
    "P": "cache blocks",
    "Z": "slots per block, or positions held in a cache",
}
