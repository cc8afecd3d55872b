"""The public `LLM`: load a model once, generate from it."""

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Sequence_
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.checkpoint.folder import find_model, find_tokenizer
from moesaic.checkpoint.paged import open_paged_model
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError, DataError, RequestError, nearest_hint
from moesaic.infer.end import choose_end_ids, read_end_ids
from moesaic.infer.prompt import Prompt, read_prompts
from moesaic.infer.request import Completion, Delta, SamplingParams
from moesaic.infer.runner import Runner
from moesaic.infer.sequence import Sequence
from moesaic.tokenizer.tokenizer import Tokenizer
from moesaic.units import parse_bytes


class LLM:
    """A model ready to generate.

    Args:
        model: a Hugging Face folder, a run folder of `moesaic train`, a checkpoint of a run, or a hub id. Without a
            tokenizer that can be read it works with prompts of token ids; asked for text, it says what is wrong.
        dtype: of the weights in memory: 'bfloat16', 'float16', 'float32'; None: as stored.
        memory: all that the process may hold, such as '4GiB': weights, keys and values, buffers, torch's own included,
            the code of libraries not. Experts that have no place are read from the files when they are needed; no
            result depends on it. None: four fifths of what the machine has free, where the model takes more.
        policy: which expert leaves when another comes: 'decayed', 'lru', 'lfu' or 'hits'.
        deterministic: give a prompt the same tokens alone and in any batch, bit for bit. Its prompts are then computed
            one after another, which takes as long as one alone for each.
        on_progress: where all experts have a place, told how many of how many are there.
        device: that computes: 'cpu', 'cuda', 'cuda:1'; None: the CPU. A CUDA device has the dense core and as many
            experts as its memory holds; the others come from the host's memory, and those that have no place there
            from the files.
        device_memory: all that model and requests may hold on a CUDA device, beside what CUDA itself takes; None: four
            fifths of what is free there.

    Raises:
        MoesaicError: the model cannot be found or loaded, or not within the memory; or there is no such device.
    """

    def __init__(
        self,
        model: str | Path,
        dtype: str | None = None,
        memory: str | int | None = None,
        policy: str = "decayed",
        deterministic: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        device: str | None = None,
        device_memory: str | int | None = None,
    ) -> None:
        budget = None if memory is None else parse_bytes(memory)
        place = _choose_device(device, device_memory)
        folder = find_model(model)
        self._paged = open_paged_model(folder, dtype, budget, policy, on_progress, *place)
        self._deterministic = deterministic
        self._end = weakref.finalize(self, self._paged.close)
        self._room = self._paged.make_room()
        self.model = self._paged.model
        self.config = self.model.config
        _warn_of_neighbours(self.config)
        self._end_ids = read_end_ids(folder, self.config.eos_token_ids)
        self.tokenizer: Tokenizer | None = None
        self._no_tokenizer: DataError | None = None
        try:
            self.tokenizer = Tokenizer.load(find_tokenizer(folder))
        except DataError as failure:
            self._no_tokenizer = failure

    def generate(
        self, prompts: Prompt | Sequence_[Prompt], params: SamplingParams | None = None, **changes: Any
    ) -> list[Completion]:
        """Complete a batch of prompts of any lengths.

        Args:
            prompts: strings or lists of token ids (arrays and tensors too); one alone is a batch of one.
            params: how to choose tokens.
            changes: fields of `SamplingParams` to set, such as max_tokens=32, temperature=0.

        Returns:
            One completion a prompt, in order; its finish_reason is 'error' where its experts could not be read.

        Raises:
            PageError: so with every prompt.
            RequestError: a prompt is empty or too long, a token id is unknown, a parameter is out of range, text is
                asked for where the checkpoint has no tokenizer that can be read, or the model has been closed.
            MemoryBudgetError: there is no memory for the keys and values of the batch.
            UnsupportedError: the model's numbers overflow in this dtype.
        """
        sequences = self._prepare(prompts, params, changes)
        completions = {delta.index: delta.completion for delta in self._run(sequences) if delta.completion is not None}
        failures = [sequence.failure for sequence in sequences if sequence.failure is not None]
        if len(failures) == len(sequences):
            raise failures[0]
        return [completions[sequence.index] for sequence in sequences]

    def stream(
        self, prompts: Prompt | Sequence_[Prompt], params: SamplingParams | None = None, **changes: Any
    ) -> Iterator[Delta]:
        """Complete prompts piece by piece; as `generate`, with a `Delta` whenever a token arrives.

        A request that cannot be met is refused by the call itself, not by the first piece.
        """
        return self._run(self._prepare(prompts, params, changes))

    def _prepare(
        self, prompts: Prompt | Sequence_[Prompt], params: SamplingParams | None, changes: dict[str, Any]
    ) -> list[Sequence]:
        if not self._end.alive:
            raise RequestError("this model has been closed", "make another LLM of it")
        params = _change(SamplingParams() if params is None else params, changes)
        batch = [self._encode(prompt) for prompt in read_prompts(prompts)]
        return [self._sequence(index, ids, params) for index, ids in enumerate(batch)]

    def _run(self, sequences: list[Sequence]) -> Iterator[Delta]:
        groups = [[sequence] for sequence in sequences] if self._deterministic else [sequences]
        with ExitStack() as stack:
            runners = [
                stack.enter_context(Runner(self.model, group, self._room, self._paged.pager)) for group in groups
            ]
            passes: list[Callable[[list[Sequence]], Tensor]] = [runner.prefill for runner in runners]
            while any(sequence.finish_reason is None for sequence in sequences):
                for index, group in enumerate(groups):
                    running = [sequence.finish_reason is None for sequence in group]
                    if not any(running):
                        continue
                    logits_BV = passes[index](group)
                    passes[index] = runners[index].decode
                    for sequence, runs, logits_V in zip(group, running, logits_BV, strict=True):
                        if sequence.failure is not None and runs:
                            yield sequence.end()
                        elif runs:
                            yield sequence.accept(sequence.choose(logits_V))

    def stats(self) -> dict[str, Any]:
        """Return what the experts' pages did since the model was loaded, and the memory that is held.

        Returns:
            hits, misses: experts that were, or were not, in memory when the router had spoken; a layer's expert counts
            once a step. hit_rate: the share of hits, None before the first. stall_seconds: waited for pages.
            guesses_right, guesses_wrong: pages that were read before the router had spoken. evictions. steps: passes by
            mode, 'ring' or 'cache'; 'cache' where every page is in memory. pages, slots, resident: of the model, room
            for them, those in memory; a model without experts has none of these. bytes_read: from files, all in all.
            budget_bytes, held_bytes, most_bytes: of the ledger, and holdings_bytes by purpose.
            Where a device computes, hits and misses are of its memory; host_hits, host_misses are pages brought there
            that were, or were not, in the host's, and bytes_copied all that was. The last four are told of the device
            as well: device_budget_bytes and so on.
        """
        return self._paged.stats()

    def close(self) -> None:
        """End the threads that read and close the files; the model generates no more."""
        self._end()

    def chat_prompt(self, messages: Sequence_[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a conversation in the checkpoint's chat template, ready for the answer.

        Raises:
            RequestError: the checkpoint has no tokenizer or no chat template.
        """
        tokenizer = self._need_tokenizer("a chat")
        return tokenizer.encode(tokenizer.apply_chat_template(messages), allow_special=True)

    def _encode(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            ids = self._need_tokenizer("a prompt of text").encode(prompt, add_special_tokens=True)
        else:
            ids = prompt
        unknown = [token for token in ids if not 0 <= token < self.config.vocab_size]
        if unknown:
            raise RequestError(
                f"token id {unknown[0]} is outside the vocabulary of {self.config.vocab_size}",
                "use the model's own tokenizer",
            )
        if not ids:
            raise RequestError("the prompt is empty", "give at least one token")
        return ids

    def _sequence(self, index: int, prompt_ids: list[int], params: SamplingParams) -> Sequence:
        context = self.config.max_position_embeddings
        room = context - len(prompt_ids)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens, the model reads {context}, its answer included",
                f"shorten the prompt to {context - 1} tokens or fewer",
            )
        if params.stop:
            self._need_tokenizer("a stop string")
        max_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        end_ids = choose_end_ids(params, self._end_ids, self.tokenizer)
        return Sequence(index, prompt_ids, params, max_tokens, end_ids, self.tokenizer)

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            assert self._no_tokenizer is not None, "a tokenizer that is missing left its reason"
            reason = self._no_tokenizer
            raise RequestError(f"{what} needs a tokenizer: {reason.text}", reason.hint) from reason
        return self.tokenizer


def _warn_of_neighbours(config: ModelConfig) -> None:
    """Warn of a model whose experts take a limited number of tokens, so that prompts of a batch compete for them."""
    if config.num_experts and (config.router == "expert_choice" or config.eval_capacity_factor is not None):
        logging.getLogger(__name__).warning(
            "this model's experts take a limited number of tokens: an answer depends on the other prompts of its "
            "batch; send prompts one at a time where that matters"
        )


def _choose_device(device: str | None, memory: str | int | None) -> tuple[str | None, int | None]:
    """Return the device that is not the CPU, and its budget.

    Raises:
        ConfigError: memory is given for no device, or is no size.
    """
    if device in (None, "cpu"):
        if memory is not None:
            raise ConfigError(
                "device_memory is given, and the CPU computes, whose memory is the host's",
                "give a device such as cuda, or memory in place of device_memory",
            )
        return None, None
    return device, None if memory is None else parse_bytes(memory, "device_memory")


def _change(params: SamplingParams, changes: dict[str, Any]) -> SamplingParams:
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params is of type {type(params).__name__}", "give a SamplingParams, or its fields by name")
    unknown = changes.keys() - SamplingParams.__dataclass_fields__.keys()
    if unknown:
        name = min(unknown)
        raise RequestError(
            f"unknown sampling parameter '{name}'", nearest_hint(name, SamplingParams.__dataclass_fields__)
        )
    return replace(params, **changes)
