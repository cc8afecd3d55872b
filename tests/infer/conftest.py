"""Models to generate with: one of token ids alone, one of each family, and two that have a tokenizer."""

from pathlib import Path

import pytest

from moesaic.checkpoint.export import export_model
from moesaic.infer.engine import LLM
from moesaic.models.table import FAMILIES, NATIVE, expand_model
from moesaic.testing.tiny import tiny_model
from moesaic.tokenizer.bpe import train_bpe
from tests.tokenizer.sentencepiece import save_sentencepiece_like

MIXTURES = sorted(name for name, family in FAMILIES.items() if family.experts is not None)
TEXT = "the cat sat on the mat and the dog saw a bird in the tree near the water\n" * 40
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="session")
def ids_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("ids") / "model"
    export_model(tiny_model(), folder)
    return folder


@pytest.fixture(scope="session", params=[*MIXTURES, NATIVE])
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of each family that has experts, under the family's own names."""
    fields = expand_model({"model_type": request.param})
    fields = {name: fields[name] for name in FAMILIES[request.param].traits} if request.param != NATIVE else {}
    if fields.get("shared_expert_gate"):
        fields["shared_expert_intermediate_size"] = 8
    folder = tmp_path_factory.mktemp(request.param) / "model"
    export_model(tiny_model(model_type=request.param, **fields), folder)
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tokenizer, an end token and a chat template."""
    root = tmp_path_factory.mktemp("text")
    tokenizer = train_bpe([TEXT], vocab_size=300)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save(root / "tokenizer")
    model = tiny_model(vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id, max_position_embeddings=48)
    export_model(model, root / "model", tokenizer=root / "tokenizer")
    return root / "model"


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tokenizer adds a start token and strips the first blank of a text, as Llama 2's does."""
    root = tmp_path_factory.mktemp("sentencepiece")
    save_sentencepiece_like(root)
    export_model(tiny_model(vocab_size=340), root / "model", tokenizer=root)
    return root / "model"


@pytest.fixture
def ids_llm(ids_folder: Path) -> LLM:
    """A model that knows no text."""
    return LLM(ids_folder)


@pytest.fixture
def text_llm(text_folder: Path) -> LLM:
    """A model of text."""
    return LLM(text_folder)


@pytest.fixture
def sentencepiece_llm(sentencepiece_folder: Path) -> LLM:
    """A model of text whose first blank matters."""
    return LLM(sentencepiece_folder)
