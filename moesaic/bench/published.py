"""Rates of clusters that others have published, to lay a prediction beside.

GPT with 12 layers of width 4,096 and as many experts as GPUs, A100 80 GB, eight a node.

SE-MoE: Shen et al., 2022, "SE-MoE: A Scalable and Efficient Mixture-of-Experts Distributed Training and Inference
System", as the README of Baidu's benchmark of this model repeats it. DeepSpeed: as SE-MoE's authors measured it; of its
rows, only that of 64 GPUs could be checked against a second source, the others are from memory and agree with the 33 %
of the abstract on average.
"""

from collections.abc import Mapping
from dataclasses import dataclass

RANKS_PER_NODE = 8


@dataclass(frozen=True)
class Published:
    """What a system was reported to reach.

    Attributes:
        tokens_per_s: of all GPUs together, by their number.
        is_flat: whether each GPU sends tokens to each other one, in no more than one hop.
    """

    system: str
    tokens_per_s: Mapping[int, int]
    is_flat: bool


PUBLISHED = (
    Published("SE-MoE", {8: 31085, 16: 59136, 32: 113456, 64: 209970, 128: 376968}, is_flat=False),
    Published("DeepSpeed", {8: 24165, 16: 43691, 32: 82957, 64: 157728, 128: 283706}, is_flat=True),
)
