"""The tokens that mean something to a model beyond their text: where a text starts, ends and is padded.

A folder may tell them in several files; the first file that tells wins:

    tokenizer_config.json      eos_token: "</s>" or {"content": "</s>", ...}
    special_tokens_map.json    the same keys
    generation_config.json     eos_token_id: 2 or [2, 32000]
    tokenizer.json alone       the special token with a well-known name
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("bos", "eos", "pad", "unk")

# Asked in this order where a tokenizer.json comes alone.
_KNOWN_ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<|im_end|>")


@dataclass(frozen=True)
class SpecialTokens:
    """The texts of the special tokens; None: the tokenizer has no such token."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None

    def as_settings(self) -> dict[str, str]:
        """Return the tokens that exist under their names in tokenizer_config.json and chat templates."""
        return {f"{role}_token": text for role in ROLES if (text := getattr(self, role)) is not None}


def read_special_tokens(
    settings: Mapping[str, Any],
    token_map: Mapping[str, Any],
    generation: Mapping[str, Any],
    id_to_token: Callable[[int], str | None],
) -> SpecialTokens:
    """Collect the special tokens that a folder's files tell, the first file winning.

    Args:
        settings: content of tokenizer_config.json.
        token_map: content of special_tokens_map.json.
        generation: content of generation_config.json, which tells ids in place of texts.
        id_to_token: the text of an id, None for an unknown one.
    """
    found: dict[str, str | None] = {}
    for role in ROLES:
        told = _text_of(settings.get(f"{role}_token")) or _text_of(token_map.get(f"{role}_token"))
        ids = generation.get(f"{role}_token_id")
        first_id = ids[0] if isinstance(ids, list) and ids else ids
        if told is None and isinstance(first_id, int):
            told = id_to_token(first_id)
        found[role] = told
    return SpecialTokens(**found)


def guess_end(special_texts: set[str]) -> str | None:
    """Return the token with a well-known name for the end of a text, or None."""
    return next((text for text in _KNOWN_ENDS if text in special_texts), None)


def _text_of(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
