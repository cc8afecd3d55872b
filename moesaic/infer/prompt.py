"""Reading what was given as prompts: one or a batch, text or token ids, in whatever holds them."""

import reprlib
from collections.abc import Sequence
from typing import Any

from moesaic.errors import RequestError

Prompt = str | Sequence[int]


def read_prompts(prompts: Any) -> list[str | list[int]]:
    """Return the prompts of a batch, each a string or a list of token ids.

    Args:
        prompts: a string, a list of token ids or a list of either; tensors and arrays count as lists.

    Raises:
        RequestError: there is no prompt, or one is neither text nor token ids.
    """
    prompts = _plain(prompts)
    if prompts is None or (_is_list(prompts) and len(prompts) == 0):
        raise RequestError("there is no prompt", "give a string, a list of token ids, or a list of either")
    is_batch = _is_list(prompts) and (isinstance(prompts[0], str) or _is_list(_plain(prompts[0])))
    return [_read_prompt(index, each) for index, each in enumerate(prompts if is_batch else [prompts])]


def _read_prompt(index: int, prompt: Any) -> str | list[int]:
    prompt = _plain(prompt)
    if isinstance(prompt, str):
        return prompt
    tokens = [_plain(token) for token in prompt] if _is_list(prompt) else [prompt]
    strange = [token for token in tokens if not isinstance(token, int) or isinstance(token, bool)]
    if strange or not _is_list(prompt):
        found = reprlib.repr(strange[0] if strange else prompt)
        raise RequestError(
            f"prompt {index} is neither text nor token ids: found {found}",
            "give a string or a list of whole numbers",
        )
    return tokens


def _plain(value: Any) -> Any:
    """Return a tensor or an array as lists of Python numbers, everything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)
