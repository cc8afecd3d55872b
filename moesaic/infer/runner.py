"""From a batch of sequences to logits: one pass over the prompts, then one token of each at a time."""

import torch
from torch import Tensor

from moesaic.infer.sequence import Sequence
from moesaic.models.model import LanguageModel


class Runner:
    """Runs the model for a fixed batch and keeps its cache."""

    def __init__(self, model: LanguageModel, sequences: list[Sequence]) -> None:
        self._model = model
        num_slots = max(len(sequence.prompt_ids) + sequence.max_tokens for sequence in sequences)
        self._cache = model.new_cache(len(sequences), num_slots)

    @torch.inference_mode()
    def prefill(self, sequences: list[Sequence]) -> Tensor:
        """Read all prompts, padded at the end; return the logits after the last token of each, [B, V]."""
        lengths_B = torch.tensor([len(sequence.prompt_ids) for sequence in sequences])
        ids_BS = torch.zeros(len(sequences), int(lengths_B.max()), dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            ids_BS[row, : len(sequence.prompt_ids)] = torch.tensor(sequence.prompt_ids)
        valid_BS = torch.arange(ids_BS.shape[1]) < lengths_B.unsqueeze(1)
        valid = None if bool(valid_BS.all()) else valid_BS
        hidden_BSD = self._model.decode(ids_BS, valid_BS=valid, cache=self._cache).hidden_BSD
        return self._model.logits(hidden_BSD[torch.arange(len(sequences)), lengths_B - 1])

    @torch.inference_mode()
    def decode(self, sequences: list[Sequence]) -> Tensor:
        """Read the last token of each sequence that still runs; return logits [B, V], arbitrary for the others."""
        ids_B1 = torch.tensor([[sequence.token_ids[-1]] for sequence in sequences])
        running_B1 = torch.tensor([[sequence.finish_reason is None] for sequence in sequences])
        valid = None if bool(running_B1.all()) else running_B1
        hidden_BSD = self._model.decode(ids_B1, valid_BS=valid, cache=self._cache).hidden_BSD
        return self._model.logits(hidden_BSD[:, 0])
