"""From a batch of sequences to logits: one pass over the prompts, then one token of each at a time."""

from collections.abc import Sequence as Sequence_

import torch
from torch import Tensor

from moesaic.errors import MemoryBudgetError
from moesaic.infer.activations import activation_bytes
from moesaic.infer.sequence import Sequence
from moesaic.memory.ledger import Ledger
from moesaic.memory.page_error import PageError
from moesaic.memory.pager import Pager
from moesaic.memory.room import Room
from moesaic.models.model import LanguageModel
from moesaic.units import format_bytes

# Slots beyond the prompts that a cache begins with; from there on it doubles.
_FIRST_SLOTS = 256
_CACHE = "keys and values"
_ACTIVATIONS = "activations"


class Runner:
    """Runs the model for a fixed batch and keeps its cache, which grows with the answers.

    Tensors are on the model's device, logits are returned on the host. Memory: at most twice what the longest text of
    the batch needs, for each text; half as much again while it grows.

    Args:
        model: to run.
        sequences: the batch.
        room: where its memory is written down; None: nowhere.
        pager: of the model's experts; None: it has none.
    """

    def __init__(
        self,
        model: LanguageModel,
        sequences: list[Sequence],
        room: Room | None = None,
        pager: Pager | None = None,
    ) -> None:
        self._model = model
        self._room = Room(Ledger(None), None) if room is None else room
        self._pager = pager
        self._max_slots = max(len(sequence.prompt_ids) + sequence.max_tokens for sequence in sequences)
        self._cache = model.new_cache(len(sequences), 0)
        self._device = self._cache.keys.device

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self._room.give_back(_CACHE, self._cache.num_bytes)
        self._cache = self._model.new_cache(0, 0)

    @torch.inference_mode()
    def prefill(self, sequences: list[Sequence]) -> Tensor:
        """Read all prompts, padded at the end; return the logits after the last token of each, [B, V].

        A sequence whose experts cannot be read has failed then, and its logits are arbitrary.

        Raises:
            MemoryBudgetError: the cache does not fit the memory.
        """
        self._reserve(max(len(sequence.prompt_ids) for sequence in sequences) + _FIRST_SLOTS)
        lengths = [len(sequence.prompt_ids) for sequence in sequences]
        ids_BS = torch.zeros(len(sequences), max(lengths), dtype=torch.int64, device="cpu")
        for row, sequence in enumerate(sequences):
            ids_BS[row, : lengths[row]] = torch.tensor(sequence.prompt_ids, device="cpu")
        hidden_BSD = self._run(ids_BS.to(self._device), lengths, sequences)
        rows_B = torch.arange(len(sequences), device=self._device)
        return self._model.logits(hidden_BSD[rows_B, torch.tensor(lengths, device=self._device) - 1]).cpu()

    @torch.inference_mode()
    def decode(self, sequences: list[Sequence]) -> Tensor:
        """Read the last token of each sequence that still runs; return logits [B, V], arbitrary for the others.

        A sequence whose experts cannot be read has failed then.

        Raises:
            MemoryBudgetError: the cache does not fit the memory.
        """
        self._reserve(max(len(sequence.prompt_ids) + len(sequence.token_ids) for sequence in sequences))
        ids = [sequence.token_ids[-1:] or [0] for sequence in sequences]  # none: it failed at once
        ids_B1 = torch.tensor(ids, device=self._device)
        hidden_B1D = self._run(ids_B1, [1] * len(sequences), sequences)
        return self._model.logits(hidden_B1D[:, 0]).cpu()

    def _run(self, ids_BS: Tensor, lengths: Sequence_[int], sequences: list[Sequence]) -> Tensor:
        """Return hidden states [B, S, D] of the sequences that still run, again without those that fail meanwhile."""
        needed = activation_bytes(self._model.config, len(ids_BS), ids_BS.shape[1], self._cache.keys.itemsize)
        self._room.take(_ACTIVATIONS, needed)
        try:
            while True:
                running = [sequence.finish_reason is None for sequence in sequences]
                counts = [length if runs else 0 for length, runs in zip(lengths, running, strict=True)]
                if not any(counts):
                    return self._cache.keys.new_zeros(*ids_BS.shape, self._model.config.hidden_size)
                try:
                    return self._pass(ids_BS, counts)
                except PageError as failure:
                    for sequence in _owners(failure.tokens, counts, sequences):
                        sequence.fail(failure)
        finally:
            self._room.give_back(_ACTIVATIONS, needed)

    def _pass(self, ids_BS: Tensor, counts: Sequence_[int]) -> Tensor:
        counts_B1 = torch.tensor(counts, device=self._device).unsqueeze(1)
        valid_BS = torch.arange(ids_BS.shape[1], device=self._device) < counts_B1
        valid = None if bool(valid_BS.all()) else valid_BS
        if self._pager is not None:
            self._pager.begin_step(counts)
        hidden_BSD = self._model.decode(ids_BS, valid_BS=valid, cache=self._cache).hidden_BSD
        if self._pager is not None:
            self._pager.end_step()
        return hidden_BSD

    def _reserve(self, num_slots: int) -> None:
        """Let the cache hold this many positions; it grows to twice its size, never past what the batch may need."""
        cache = self._cache
        layers, batch, heads, held, channels = cache.keys.shape
        if num_slots <= held:
            return
        wanted = min(max(num_slots, 2 * held), self._max_slots)
        before, needed = cache.num_bytes, 2 * layers * batch * heads * wanted * channels * cache.keys.itemsize
        self._room.take(_CACHE, needed)
        try:
            cache.grow(wanted)
        except RuntimeError as failure:  # torch raises no narrower one when a CPU is out of memory
            self._room.give_back(_CACHE, needed)
            raise MemoryBudgetError(
                f"no memory for the keys and values of {batch} x {wanted} tokens: {format_bytes(needed)}",
                "lower max_tokens, or send fewer prompts at once",
            ) from failure
        self._room.give_back(_CACHE, before)


def _owners(tokens: Sequence_[int], counts: Sequence_[int], sequences: list[Sequence]) -> list[Sequence]:
    """Return the sequences that some tokens belong to, which count through all of them, one after another."""
    owners = [sequence for sequence, count in zip(sequences, counts, strict=True) for _ in range(count)]
    return list(dict.fromkeys(owners[token] for token in tokens))
