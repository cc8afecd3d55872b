from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.config.data import DataConfig
from moesaic.data.prepare import PreparedData, prepare
from moesaic.tokenizer.bpe import train_bpe
from moesaic.tokenizer.tokenizer import Tokenizer

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]

Prepare = Callable[..., PreparedData]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test out of the user's own cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MOESAIC_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe([(" ".join(WORDS) + "\n") * 30], vocab_size=280)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of 120 documents of different lengths."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(120):
        words = (WORDS * 6)[number % 5 : 8 + number % 30]
        (folder / f"{number:03d}.txt").write_text(f"{number} " + " ".join(words))
    return folder


@pytest.fixture
def prepare_corpus(corpus: Path, tokenizer: Tokenizer) -> Prepare:
    """Return a function that prepares the corpus under given settings of the data section."""

    def prepare_with(**settings: object) -> PreparedData:
        given = {"sequence_length": 16, "held_out": 0.1, **settings}
        if "mixture" not in given:
            given.setdefault("source", str(corpus))
        return prepare(DataConfig.model_validate(given), tokenizer)

    return prepare_with
