"""The tokenizer of a run: a given one, or one trained on the run's own text.

A trained one is cached by the text and the size of the vocabulary, so that a second run finds it. It learns
from a sample that is spread over each source: a library sorted by name, say, would otherwise be known by its
first letters.
"""

from collections.abc import Iterator
from pathlib import Path

from moesaic.config.data import DataConfig, TokenizerConfig
from moesaic.data.cache import cache_root, digest_of, open_or_fill
from moesaic.data.document import Source
from moesaic.data.source import open_sources
from moesaic.data.tokenise import cut_pieces
from moesaic.errors import ConfigError
from moesaic.tokenizer.bpe import train_bpe
from moesaic.tokenizer.tokenizer import Tokenizer

FORMAT_VERSION = 2
SAMPLE_BYTES = 8_000_000
PIECE_CHARACTERS = 32_768


def fit_tokenizer(data: DataConfig, tokenizer: TokenizerConfig, model_vocab_size: int) -> Tokenizer:
    """Load the tokenizer that a recipe names, or train one on its sources.

    Args:
        data: the sources to train on, and the cache.
        tokenizer: the recipe's section.
        model_vocab_size: entries of the model's embedding table.

    Raises:
        ConfigError: the tokenizer has more entries than the model, or the vocabulary asked for is too small.
        DataError: the tokenizer or a source cannot be read.
    """
    if tokenizer.path is not None:
        fitted = Tokenizer.load(tokenizer.path)
        origin = f"tokenizer '{tokenizer.path}'"
    else:
        fitted = _train(data, tokenizer.vocab_size or model_vocab_size)
        origin = "the trained tokenizer"
    if fitted.vocab_size > model_vocab_size:
        raise ConfigError(
            f"{origin} has {fitted.vocab_size} entries, model.vocab_size is {model_vocab_size}",
            f"set model.vocab_size to {fitted.vocab_size} or more",
        )
    return fitted


def _train(data: DataConfig, vocab_size: int) -> Tokenizer:
    parts = data.parts
    sources = open_sources(data)
    total_weight = sum(part.weight for part in parts)
    quotas = [int(SAMPLE_BYTES * part.weight / total_weight) for part in parts]
    prints = [source.fingerprint() for source in sources]
    key = digest_of([FORMAT_VERSION, prints, quotas, vocab_size])

    def fill(empty: Path) -> None:
        pairs = zip(sources, quotas, strict=True)
        texts = (text for source, quota in pairs for text in sample_texts(source, quota))
        train_bpe(texts, vocab_size, max_bytes=SAMPLE_BYTES).save(empty)

    return open_or_fill(cache_root(data.cache) / "tokenizers" / key, Tokenizer.load, fill)


def sample_texts(source: Source, max_bytes: int) -> Iterator[str]:
    """Yield pieces of a source's text, about `max_bytes` in all, spread evenly where its size is known.

    After any part of the source, no larger part of `max_bytes` is taken: all of the text where there is little of
    it, as in rows with much else, and every n-th piece where there is more.
    """
    passed, taken = 0.0, 0
    for document in source.documents():
        for piece in cut_pieces(document.text, PIECE_CHARACTERS):
            passed += document.num_bytes * len(piece) / len(document.text)
            if source.num_bytes is None or taken * source.num_bytes < max_bytes * passed:
                taken += len(piece.encode("utf-8"))
                yield piece
            if taken >= max_bytes:
                return
