"""From a batch of sequences to logits: one pass over the prompts, then one token of each at a time."""

import torch
from torch import Tensor

from moesaic.errors import MemoryBudgetError
from moesaic.infer.sequence import Sequence
from moesaic.models.model import LanguageModel
from moesaic.units import format_bytes

# Slots beyond the prompts that a cache begins with; from there on it doubles.
_FIRST_SLOTS = 256


class Runner:
    """Runs the model for a fixed batch and keeps its cache, which grows with the answers.

    Memory: at most twice what the longest text of the batch needs, for each text; half as much again while it grows.
    """

    def __init__(self, model: LanguageModel, sequences: list[Sequence]) -> None:
        self._model = model
        self._max_slots = max(len(sequence.prompt_ids) + sequence.max_tokens for sequence in sequences)
        self._cache = model.new_cache(len(sequences), 0)

    @torch.inference_mode()
    def prefill(self, sequences: list[Sequence]) -> Tensor:
        """Read all prompts, padded at the end; return the logits after the last token of each, [B, V].

        Raises:
            MemoryBudgetError: the cache does not fit the memory.
        """
        self._reserve(max(len(sequence.prompt_ids) for sequence in sequences) + _FIRST_SLOTS)
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
        """Read the last token of each sequence that still runs; return logits [B, V], arbitrary for the others.

        Raises:
            MemoryBudgetError: the cache does not fit the memory.
        """
        self._reserve(max(len(sequence.prompt_ids) + len(sequence.token_ids) for sequence in sequences))
        ids_B1 = torch.tensor([[sequence.token_ids[-1]] for sequence in sequences])
        running_B1 = torch.tensor([[sequence.finish_reason is None] for sequence in sequences])
        valid = None if bool(running_B1.all()) else running_B1
        hidden_BSD = self._model.decode(ids_B1, valid_BS=valid, cache=self._cache).hidden_BSD
        return self._model.logits(hidden_BSD[:, 0])

    def _reserve(self, num_slots: int) -> None:
        """Let the cache hold this many positions; it grows to twice its size, never past what the batch may need."""
        cache = self._cache
        layers, batch, heads, held, channels = cache.keys.shape
        if num_slots <= held:
            return
        wanted = min(max(num_slots, 2 * held), self._max_slots)
        try:
            cache.grow(wanted)
        except RuntimeError as failure:  # torch raises no narrower one when a CPU is out of memory
            needed = 2 * layers * batch * heads * wanted * channels * cache.keys.itemsize
            raise MemoryBudgetError(
                f"no memory for the keys and values of {batch} x {wanted} tokens: {format_bytes(needed)}",
                "lower max_tokens, or send fewer prompts at once",
            ) from failure
