"""The peers that generate, each in its own process: the same tokens and logits as ours from the same weights."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moesaic import load_model
from moesaic.bench.compare import check_equal
from moesaic.bench.worker import Answer, ask_worker
from moesaic.errors import MoesaicError
from tests.models.foreign import build_foreign, save_foreign

PEERS = Path(__file__).parents[2] / ".venv-peers"
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]]
NEW_TOKENS = 4
REQUEST = {"prompts": PROMPTS, "next": None, "new_tokens": NEW_TOKENS, "threads": 1, "rounds": 2}
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small OLMoE as transformers saves it, in bfloat16."""
    place = tmp_path_factory.mktemp("olmoe")
    model = build_foreign("olmoe", SIZES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                # Larger ones show a rounding as another choice of experts.
                parameter.mul_(0.3)
    save_foreign(model.to(torch.bfloat16), place)
    return place


@pytest.fixture(scope="module")
def llama_python() -> Path:
    if not (PEERS / "llama.done").exists():
        pytest.skip("llama.cpp has no environment here: make peers")
    return PEERS / "bin" / "python"


def _expected(folder: Path) -> Tensor:
    """Compute the logits [N, B, V] of our own greedy tokens, in float32."""
    model, ids_BS, logits = load_model(folder, dtype="float32"), torch.tensor(PROMPTS), []
    for _ in range(NEW_TOKENS):
        logits.append(model(ids_BS)[:, -1])
        ids_BS = torch.cat([ids_BS, logits[-1].argmax(1, keepdim=True)], 1)
    return torch.stack(logits)


def _check(answer: Answer, logits: Path, expected: Tensor) -> None:
    check_equal("logits", torch.from_numpy(np.load(logits)), expected, limit=2e-2)
    assert answer.values["tokens"] == expected.argmax(2).T.tolist()
    assert [len(answer.values[key]) for key in ("prefill_s", "steps_s")] == [2, 2]
    assert all(len(times) == NEW_TOKENS - 1 for times in answer.values["steps_s"])


@pytest.mark.parametrize("mmap", [True, False])
def test_llama_gives_our_logits_when_it_reads_the_converted_file(
    llama_python: Path, folder: Path, tmp_path: Path, mmap: bool
) -> None:
    file, logits = tmp_path / "model.gguf", tmp_path / "logits.npy"
    converted = ask_worker(llama_python, "gguf", {"folder": str(folder), "file": str(file)})
    assert converted.values == {"bytes": file.stat().st_size}
    request = {**REQUEST, "model": str(file), "mmap": mmap, "logits": str(logits)}
    _check(ask_worker(llama_python, "llama", request), logits, _expected(folder))


def test_model_is_refused_when_llama_computes_another(llama_python: Path, tmp_path: Path) -> None:
    model = build_foreign("olmoe", {**SIZES, "norm_topk_prob": True}, torch.bfloat16)
    save_foreign(model, tmp_path)
    with pytest.raises(MoesaicError, match=r"llama\.cpp computes no OLMoE whose norm_topk_prob is True"):
        ask_worker(llama_python, "gguf", {"folder": str(tmp_path), "file": str(tmp_path / "model.gguf")})
    assert not list(tmp_path.glob("*.gguf"))


def test_missing_file_is_named_when_llama_cannot_load_it(llama_python: Path, tmp_path: Path) -> None:
    request = {**REQUEST, "model": str(tmp_path / "absent.gguf"), "mmap": True, "logits": None}
    with pytest.raises(MoesaicError, match=r"llama\.cpp cannot load '.*absent\.gguf'"):
        ask_worker(llama_python, "llama", request)


@pytest.mark.slow
@pytest.mark.parametrize("cpu_bytes", [None, 200_000])
def test_transformers_gives_our_logits_when_weights_lie_in_memory_or_on_disk(
    folder: Path, tmp_path: Path, cpu_bytes: int | None
) -> None:
    logits = tmp_path / "logits.npy"
    offload = None if cpu_bytes is None else {"cpu_bytes": cpu_bytes, "folder": str(tmp_path / "offload")}
    request = {**REQUEST, "model": str(folder), "offload": offload, "logits": str(logits)}
    _check(ask_worker(Path(sys.executable), "transformers", request), logits, _expected(folder))
    assert (tmp_path / "offload").exists() == (offload is not None)
