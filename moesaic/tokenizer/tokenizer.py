"""The tokenizer of a model: a Hugging Face tokenizer.json with what its folder tells around it.

The name of a special token inside ordinary text ("<|endoftext|>" in a source file, say) is ordinary text:
only whoever builds a prompt may ask for the token itself. The backend switches this by a flag of its own, so
there are two backends, and threads never see each other's choice.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from moesaic.errors import DataError, RequestError
from moesaic.tokenizer.chat import Message, choose_template, render_chat
from moesaic.tokenizer.folder import SETTINGS_FILE, TOKENIZER_FILE, TokenizerFiles, read_tokenizer_files
from moesaic.tokenizer.special import SpecialTokens, guess_end, read_special_tokens
from moesaic.tokenizer.stream import StreamDecoder


class Tokenizer:
    """Text to ids and back.

    Attributes:
        special: texts of the special tokens.
        chat_template: Jinja source that turns messages into a prompt; None: the model has no chat format.
        max_length: tokens that the model reads at most; None: not told.
        digest: sha256 of the tokenizer.json, in hex; tokenizers with equal digests give equal ids.
    """

    def __init__(
        self,
        content: str,
        special: SpecialTokens,
        chat_template: str | None = None,
        max_length: int | None = None,
    ) -> None:
        """Build from the content of a tokenizer.json, which is kept as it is for `save`."""
        self._content = content
        self._plain = _build_backend(content)
        self._plain.encode_special_tokens = True
        self.special = special
        self.chat_template = chat_template
        self.max_length = max_length
        self.digest = hashlib.sha256(content.encode("utf-8")).hexdigest()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a tokenizer.json, or a folder that holds one.

        Raises:
            DataError: there is none, or a file cannot be read; the text names it.
        """
        files = read_tokenizer_files(Path(path).expanduser())
        template = files.template if files.template is not None else files.settings.get("chat_template")
        max_length = files.settings.get("model_max_length")
        # Transformers writes an absurd length for 'not told'.
        told = isinstance(max_length, int) and max_length < 10**12
        try:
            tokenizer = cls(files.content, SpecialTokens(), choose_template(template), max_length if told else None)
        except Exception as failure:  # the backend raises bare Exception
            raise DataError(
                f"cannot read tokenizer '{path}': {failure}",
                "give a tokenizer.json of the tokenizers library",
            ) from None
        tokenizer.special = _special_tokens_of(files, tokenizer._plain)
        return tokenizer

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, a folder that transformers' AutoTokenizer reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **self.special.as_settings(),
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.max_length or int(1e30),
        }
        if self.chat_template is not None:
            settings["chat_template"] = self.chat_template
        (folder / TOKENIZER_FILE).write_text(self._content, encoding="utf-8", newline="")
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")

    @cached_property
    def vocab_size(self) -> int:
        """Entries that an embedding table needs: the highest id, plus one."""
        return max(self._plain.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Ids of the tokens that decoding leaves out, by their texts."""
        added = self._plain.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in added.items() if token.special}

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._id_of(self.special.eos)

    @property
    def bos_id(self) -> int | None:
        """Id of the token that starts a text."""
        return self._id_of(self.special.bos)

    @property
    def pad_id(self) -> int | None:
        """Id of the token that fills a batch."""
        return self._id_of(self.special.pad)

    def encode(self, text: str, add_special_tokens: bool = False, allow_special: bool = False) -> list[int]:
        """Return the ids of a text.

        Args:
            text: any text that has a UTF-8 form.
            add_special_tokens: add what the post-processor puts around a text, such as a start token.
            allow_special: read the name of a special token as that token, as prompts of chat templates need.

        Raises:
            RequestError: the text holds half a surrogate pair, which is no character.
        """
        backend = self._with_special if allow_special else self._plain
        _check_characters(text)
        return backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text as `encode` does by default, on all cores.

        Raises:
            RequestError: a text holds half a surrogate pair.
        """
        for text in texts:
            _check_characters(text)
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of ids; ids without a token have no text, broken UTF-8 becomes U+FFFD."""
        return self._plain.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream_decoder(self, context: Sequence[int] = (), skip_special_tokens: bool = True) -> StreamDecoder:
        """Return a decoder for ids that arrive one by one, after those of `context`."""
        return StreamDecoder(lambda ids: self.decode(ids, skip_special_tokens), context)

    def apply_chat_template(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Return the prompt of a conversation; encode it with `allow_special=True`.

        Args:
            messages: each with `role` and `content`.
            add_generation_prompt: end with the words that open the assistant's turn.
            variables: further names that the template reads, such as `tools` or `enable_thinking`.

        Raises:
            RequestError: the tokenizer has no template, or its template refuses the messages.
            DataError: the template is no valid Jinja.
        """
        if self.chat_template is None:
            raise RequestError(
                "this model's tokenizer has no chat template",
                "send a plain prompt, or add chat_template.jinja beside tokenizer.json",
            )
        known = {**self.special.as_settings(), **variables}
        return render_chat(self.chat_template, messages, add_generation_prompt, known)

    @cached_property
    def _with_special(self) -> Backend:
        return _build_backend(self._content)

    def _id_of(self, text: str | None) -> int | None:
        return None if text is None else self._plain.token_to_id(text)


def _build_backend(content: str) -> Backend:
    backend = Backend.from_str(content)
    # Some files carry the cutting and filling of their training, which would silently shorten a text.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _special_tokens_of(files: TokenizerFiles, backend: Backend) -> SpecialTokens:
    special = read_special_tokens(files.settings, files.token_map, files.generation, backend.id_to_token)
    if special.eos is not None or files.settings:
        return special
    texts = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    return replace(special, eos=guess_end(texts))


def _check_characters(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as failure:
        raise RequestError(
            f"cannot encode text: character {failure.start} is half of a surrogate pair",
            "send valid Unicode text",
        ) from None
