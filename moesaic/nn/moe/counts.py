"""What a mixture saw of a whole batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.nn.moe.batch import WHOLE, Batch
from moesaic.nn.moe.load import ExpertLoad
from moesaic.nn.moe.router import Routing


@dataclass(frozen=True)
class Counts:
    """Counts over all parts of a batch; padding counts nowhere.

    Attributes:
        load: choices per expert.
        num_tokens: int64 scalar.
        num_sequences: int64 scalar, those with a token; zero where nobody told which token is of which.
    """

    load: ExpertLoad
    num_tokens: Tensor
    num_sequences: Tensor


def count(routing: Routing, num_experts: int, sequence_ids_T: Tensor | None = None, batch: Batch = WHOLE) -> Counts:
    """Count what was chosen.

    Args:
        sequence_ids_T: which sequence each token is of; a sequence has all its tokens in one part.
        batch: of which the routed tokens are a part; all parts must count.
    """
    choices_E = torch.bincount(routing.chosen_expert_ids, minlength=num_experts)
    num_dropped = len(routing.chosen_expert_ids) - len(routing.expert_ids_N)
    num_sequences = 0 if sequence_ids_T is None else len(sequence_ids_T.unique())
    others = choices_E.new_tensor([num_dropped, len(routing.logits_TE), num_sequences])
    totals = batch.total(torch.cat([choices_E, others]))
    return Counts(
        ExpertLoad(totals[:num_experts], totals[num_experts]), totals[num_experts + 1], totals[num_experts + 2]
    )
