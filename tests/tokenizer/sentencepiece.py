"""A tokenizer in the manner of Llama 2, whose decoder treats the first token of a text as no other."""

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, processors, trainers
from tokenizers import Tokenizer as Backend

TEXT = "a few plain words and a few more of them"


def save_sentencepiece_like(folder: Path) -> None:
    """Write the files of a tokenizer that strips a leading blank, writes rare characters as bytes and adds a start."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    bytes_of_fallback = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special + bytes_of_fallback, show_progress=False, limit_alphabet=40
    )
    backend.train_from_iterator([TEXT] * 5, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    (folder / "tokenizer.json").write_text(_with_special_only(backend.to_str(), special), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"}', encoding="utf-8"
    )


def _with_special_only(content: str, special: list[str]) -> str:
    tree = json.loads(content)
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in special]
    return json.dumps(tree)
