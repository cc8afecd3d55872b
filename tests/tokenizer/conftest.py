import pytest

from moesaic.tokenizer.bpe import train_bpe
from moesaic.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.sentencepiece import save_sentencepiece_like

TEXT = "def f(x):\n    return x + 12345\n\n\nclass A:\n    '''Naïve € text.'''\n" * 20


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT], vocab_size=320)


@pytest.fixture(scope="session")
def sentencepiece_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("sentencepiece")
    save_sentencepiece_like(folder)
    return Tokenizer.load(folder)
