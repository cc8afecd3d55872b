"""Training of byte-level byte-pair encoding (BPE).

Byte-level: the alphabet is the 256 bytes, so every string has tokens and comes back unchanged. Text is first
cut into pieces that no merge crosses. The cut suits code: a line's end and the indentation of the next line
stay one piece, save the last blank, which belongs to the word after it:

    if x:⏎········return 12345   ->   if | x | :⏎······· | ·return | · | 12 | 34 | 5
"""

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from moesaic.errors import ConfigError, DataError
from moesaic.tokenizer.tokenizer import SpecialTokens, Tokenizer

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
NUM_BYTES = 256

_PIECES = (
    r"[^\s\p{L}\p{N}]\p{L}+",  # a mark and its word: ".append", "_name", "'t"
    r" ?\p{L}+",  # a word with the blank before it
    r"\p{N}{1,2}",  # digits in short groups, so that few numbers need a token of their own
    r" ?[^\s\p{L}\p{N}]+(?:[\r\n]\s*(?=[ \t])|[\r\n]*)",  # marks, with a line's end and indentation
    r"\s+(?!\S)",  # blanks up to the last, which goes to what follows
    r"\s+",
)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = (END_OF_TEXT, PADDING),
    max_bytes: int = 8_000_000,
) -> Tokenizer:
    """Train a byte-level BPE tokenizer; the same texts give the same tokenizer.

    Source: Sennrich, Haddow and Birch (2016), "Neural machine translation of rare words with subword units";
    over bytes as in Radford et al. (2019), "Language models are unsupervised multitask learners".

    Args:
        texts: read in order, and only until `max_bytes` are seen.
        vocab_size: entries, special tokens included; a short text may give fewer.
        special_tokens: get the ids 0, 1, ...; the first ends a text, the second, if any, pads a batch.
        max_bytes: UTF-8 bytes of text to learn from, which bounds time and memory.

    Raises:
        ConfigError: `vocab_size` has no room for the bytes and the special tokens.
        DataError: there is no text.
    """
    _check_room(vocab_size, len(special_tokens))
    sample = list(_first_bytes(texts, max_bytes))
    if not sample:
        raise DataError("cannot train a tokenizer: there is no text", "name a source with text in data.source")
    backend = _untrained_backend()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    padding = special_tokens[1] if len(special_tokens) > 1 else None
    return Tokenizer(backend.to_str(pretty=True), SpecialTokens(eos=special_tokens[0], pad=padding))


def _check_room(vocab_size: int, num_special: int) -> None:
    smallest = NUM_BYTES + num_special
    if vocab_size < smallest:
        raise ConfigError(
            f"a vocabulary of {vocab_size} is too small for byte-level BPE: "
            f"{NUM_BYTES} bytes and {num_special} special tokens need {smallest}",
            f"set tokenizer.vocab_size and model.vocab_size to {smallest} or more",
        )


def _untrained_backend() -> Backend:
    backend = Backend(models.BPE())
    cut = pre_tokenizers.Split(Regex("|".join(_PIECES)), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _first_bytes(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    left = max_bytes
    for text in texts:
        content = text.encode("utf-8", errors="replace")[:left]
        if content:
            yield content.decode("utf-8", errors="ignore")
        left -= len(content)
        if left <= 0:
            return
