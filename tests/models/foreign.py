"""Models of transformers: the independent implementation that ours is compared with."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

# Their plainest code paths: no fused attention, no grouped products.
_PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


def build_foreign(family: str, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """Build transformers' model of a family, with weights large enough that every part of it shows."""
    settings = transformers.AutoConfig.for_model(family, **config)
    model = transformers.AutoModelForCausalLM.from_config(settings, **_PLAIN)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if "norm" in name:
                parameter.add_(1.0)
    return model.to(dtype).eval()


def save_foreign(model: Any, folder: Path) -> None:
    """Save as transformers does."""
    model.save_pretrained(folder)


def load_foreign(folder: Path, dtype: torch.dtype) -> Any:
    """Load with transformers, as the tensors lie on disk."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **_PLAIN)
    return model.eval()


@torch.no_grad()
def foreign_logits(model: Any, ids_BS: Tensor) -> Tensor:
    """Return transformers' logits [B, S, V]."""
    return model(ids_BS, use_cache=False).logits


@torch.no_grad()
def foreign_greedy(model: Any, ids_S: list[int], num_tokens: int) -> list[int]:
    """Return the tokens that transformers' own greedy loop appends to a prompt."""
    out_BS = model.generate(
        torch.tensor([ids_S]),
        attention_mask=torch.ones(1, len(ids_S), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=num_tokens,
        pad_token_id=0,
        eos_token_id=None,
    )
    return out_BS[0, len(ids_S) :].tolist()
