"""The public `LLM`: load a model once, generate from it."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Sequence_
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from moesaic.checkpoint.folder import find_model
from moesaic.checkpoint.load import load_model
from moesaic.errors import RequestError, nearest_hint
from moesaic.infer.request import Completion, Delta, SamplingParams
from moesaic.infer.runner import Runner
from moesaic.infer.sequence import Sequence
from moesaic.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence_[int]


class LLM:
    """A model ready to generate.

    Args:
        model: a Hugging Face folder, a run folder of `moesaic train`, or a hub id. A folder without a tokenizer
            works with prompts of token ids.
        dtype: of the weights in memory: 'bfloat16', 'float16', 'float32'; None: as stored.

    Raises:
        MoesaicError: the model cannot be found or loaded.
    """

    def __init__(self, model: str | Path, dtype: str | None = None) -> None:
        folder = find_model(model)
        self.model = load_model(folder, dtype)
        self.config = self.model.config
        has_tokenizer = (folder / "tokenizer.json").is_file()
        self.tokenizer = Tokenizer.load(folder) if has_tokenizer else None

    def generate(
        self, prompts: Prompt | Sequence_[Prompt], params: SamplingParams | None = None, **changes: Any
    ) -> list[Completion]:
        """Complete a batch of prompts of any lengths.

        Args:
            prompts: strings or lists of token ids; one alone is a batch of one.
            params: how to choose tokens.
            changes: fields of `SamplingParams` to set, such as max_tokens=32, temperature=0.

        Returns:
            One completion a prompt, in order.

        Raises:
            RequestError: a prompt is empty or too long, a token id is unknown, or a parameter is out of range.
        """
        finished = [delta for delta in self.stream(prompts, params, **changes) if delta.completion is not None]
        finished.sort(key=lambda delta: delta.index)
        return [delta.completion for delta in finished if delta.completion is not None]

    def stream(
        self, prompts: Prompt | Sequence_[Prompt], params: SamplingParams | None = None, **changes: Any
    ) -> Iterator[Delta]:
        """Complete prompts piece by piece; as `generate`, with a `Delta` whenever a token arrives."""
        params = _change(params or SamplingParams(), changes)
        sequences = [self._sequence(index, ids, params) for index, ids in enumerate(self._encode(prompts))]
        runner = Runner(self.model, sequences)
        logits_BV = runner.prefill(sequences)
        while True:
            for sequence in sequences:
                if sequence.finish_reason is None:
                    yield sequence.accept(sequence.choose(logits_BV[sequence.index]))
            if all(sequence.finish_reason is not None for sequence in sequences):
                return
            logits_BV = runner.decode(sequences)

    def chat_prompt(self, messages: Sequence_[Mapping[str, Any]]) -> list[int]:
        """Return the token ids of a conversation in the checkpoint's chat template, ready for the answer.

        Raises:
            RequestError: the checkpoint has no tokenizer or no chat template.
        """
        tokenizer = self._need_tokenizer("a chat")
        return tokenizer.encode(tokenizer.apply_chat_template(messages), allow_special=True)

    def _encode(self, prompts: Prompt | Sequence_[Prompt]) -> list[list[int]]:
        if not prompts and not isinstance(prompts, str):
            raise RequestError("there is no prompt", "give a string, a list of token ids, or a list of either")
        is_one = isinstance(prompts, str) or isinstance(prompts[0], int)
        batch = cast("list[Prompt]", [prompts] if is_one else prompts)
        return [self._encode_one(prompt) for prompt in batch]

    def _encode_one(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = self._need_tokenizer("a prompt of text").encode(prompt, add_special_tokens=True)
        else:
            ids = list(prompt)
        if not all(isinstance(token, int) for token in ids):
            raise RequestError("a prompt is neither text nor token ids", "give a string or a list of whole numbers")
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
        room = self.config.max_position_embeddings - len(prompt_ids)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens, the model reads {self.config.max_position_embeddings}",
                "shorten the prompt",
            )
        if params.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and the checkpoint has none", "drop them")
        max_tokens = room if params.max_tokens is None else min(room, params.max_tokens)
        return Sequence(index, prompt_ids, params, max_tokens, self.config.eos_token_ids, self.tokenizer)

    def _need_tokenizer(self, what: str) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(f"{what} needs a tokenizer, and the checkpoint has none", "give a list of token ids")
        return self.tokenizer


def _change(params: SamplingParams, changes: dict[str, Any]) -> SamplingParams:
    unknown = changes.keys() - SamplingParams.__dataclass_fields__.keys()
    if unknown:
        name = min(unknown)
        raise RequestError(
            f"unknown sampling parameter '{name}'", nearest_hint(name, SamplingParams.__dataclass_fields__)
        )
    if isinstance(changes.get("stop"), str):
        changes["stop"] = (changes["stop"],)
    elif "stop" in changes:
        changes["stop"] = tuple(changes["stop"] or ())
    return replace(params, **changes)
