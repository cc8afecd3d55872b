"""Decoding of a text while its tokens arrive.

A token may end within a character, and some decoders treat the first token of a text differently (they strip
its blank). So the text of a window of last tokens is compared with and without the new ones, and what they
add is told as soon as it does not end in the replacement character, which stands for half a character:

    ids      ... | context | read, not told | new
    decoded        "abc"     "abc" + "d\\ufffd"  -> wait
"""

from collections.abc import Callable, Sequence

_HALF_CHARACTER = "\ufffd"


class StreamDecoder:
    """Turns ids into text piece by piece; the pieces joined are what the ids add to the text of their context."""

    def __init__(self, decode_fn: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        """Start a text.

        Args:
            decode_fn: gives the text of whole ids.
            context: ids before the first one, already told; a context that ends within a character is as none,
                since the rest of the character changes its text.
        """
        self._decode_fn = decode_fn
        text = decode_fn(context)
        is_whole = not text.endswith(_HALF_CHARACTER)
        self._window = list(context) if is_whole else []
        self._num_context = len(self._window)
        self._context_text = text if is_whole else ""

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that has become certain, often the empty string."""
        self._window.append(token_id)
        text = self._decode_fn(self._window)
        if len(text) <= len(self._context_text) or text.endswith(_HALF_CHARACTER):
            return ""
        return self._tell(text)

    def flush(self) -> str:
        """Return what is left when no id follows; half a character comes as the replacement character."""
        return self._tell(self._decode_fn(self._window))

    def _tell(self, text: str) -> str:
        told = text[len(self._context_text) :]
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._context_text = self._decode_fn(self._window)
        return told
