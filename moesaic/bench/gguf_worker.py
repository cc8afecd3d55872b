"""An OLMoE folder as one GGUF file for llama.cpp: a script, run by the Python of an environment with gguf.

It reads one JSON object from standard input, `{"folder": HUGGING FACE FOLDER, "file": FILE}`. The names are those that
the gguf package maps the stored ones to; there a layer's experts are one tensor, [E, F, D] or [E, D, F]. The weights
stay as they are, in bfloat16, so that both programs compute with the same ones; norms and routers are widened to
float32, as llama.cpp has them. There is no vocabulary: prompts are token ids. Memory holds one tensor of the file at a
time.
"""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

_ARCHITECTURE = gguf.MODEL_ARCH.OLMOE
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# What the family can say and llama.cpp does not compute, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "model_type": ("olmoe",),
    "norm_topk_prob": (False, None),
    "clip_qkv": (None,),
    "attention_bias": (False, None),
    "tie_word_embeddings": (False, None),
    "rope_type": ("default", None),
}


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file.

    Attributes:
        name: in the file.
        sources: the stored tensor, or one for each expert in order.
        shape: as PyTorch has it.
        is_wide: float32, not bfloat16.
    """

    name: str
    sources: list[str]
    shape: list[int]
    is_wide: bool

    def describe(self) -> dict[str, Any]:
        """Return the arguments of `GGUFWriter.add_tensor_info`."""
        dtype = np.dtype(np.float32 if self.is_wide else np.uint16)
        kinds = gguf.GGMLQuantizationType
        return {
            "name": self.name,
            "tensor_shape": self.shape,
            "tensor_dtype": dtype,
            "tensor_nbytes": int(np.prod(self.shape)) * dtype.itemsize,
            "raw_dtype": kinds.F32 if self.is_wide else kinds.BF16,
        }


def main() -> None:
    """Convert as asked; the file appears whole or not at all."""
    request = json.load(sys.stdin)
    file = Path(request["file"])
    beside = file.with_name(f".writing-{file.name}")
    try:
        convert(Path(request["folder"]), beside)
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
    print(json.dumps({"bytes": file.stat().st_size}))


def convert(folder: Path, file: Path) -> None:
    """Write the file; exits with a text where llama.cpp does not compute the model."""
    config = json.loads((folder / "config.json").read_text())
    config |= config.get("rope_parameters") or config.get("rope_scaling") or {}
    for key, accepted in _NEUTRAL.items():
        if config.get(key) not in accepted:
            sys.exit(f"llama.cpp computes no OLMoE whose {key} is {config[key]!r}")
    stored: dict[str, Any] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        handle = safe_open(shard, framework="pt")
        stored |= dict.fromkeys(handle.keys(), handle)
    entries = _plan(stored, config["num_hidden_layers"])

    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[_ARCHITECTURE])
    _add_fields(writer, config)
    for entry in entries:
        writer.add_tensor_info(**entry.describe())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        tensors = [stored[source].get_tensor(source) for source in entry.sources]
        tensor = (torch.stack(tensors) if len(tensors) > 1 else tensors[0]).view(entry.shape)
        tensor = tensor.float() if entry.is_wide else tensor.bfloat16().view(torch.uint16)
        writer.write_tensor_data(tensor.numpy())
    writer.close()


def _plan(stored: dict[str, Any], num_layers: int) -> list[_Entry]:
    names = gguf.get_tensor_name_map(_ARCHITECTURE, num_layers)
    found: dict[tuple[Any, str], dict[int, str]] = {}
    for name in stored:
        kind_and_name = names.get_type_and_name(_EXPERT.sub(".experts.", name), try_suffixes=(".weight",))
        if kind_and_name is None:
            sys.exit(f"gguf has no name for '{name}'")
        number = _EXPERT.search(name)
        found.setdefault(kind_and_name, {})[int(number[1]) if number else 0] = name
    entries = []
    for (kind, name), parts in found.items():
        sources = [parts[number] for number in sorted(parts)]
        shape = stored[sources[0]].get_slice(sources[0]).get_shape()
        is_expert = _EXPERT.search(sources[0]) is not None
        is_wide = len(shape) == 1 or kind == gguf.MODEL_TENSOR.FFN_GATE_INP
        entries.append(_Entry(name, sources, [len(sources), *shape] if is_expert else shape, is_wide))
    return entries


def _add_fields(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_rope_freq_base(config.get("rope_theta") or 10_000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


if __name__ == "__main__":
    main()
