"""Embedding table and output head of a large vocabulary, kept whole by every rank and in parts: time and memory.

A step embeds each rank's tokens, takes their cross-entropy as if nothing lay in between, and goes back, until every
rank has the gradients of the parameters that it keeps. All ranks must call alike.
"""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from moesaic.comm.mesh import Mesh
from moesaic.config.model import ModelConfig
from moesaic.hw.allocator import give_back_freed_memory
from moesaic.models.model import build_model
from moesaic.nn.init import init_weights
from moesaic.parallel.apply import apply_parallel, share_gradients
from moesaic.parallel.part import local_part, own_part

VOCABULARY, WIDTH, TOKENS = 50_304, 2048, 512
_BUCKET_BYTES = 2**25
_ADAM_BYTES = 16  # a parameter, its gradient and two moments in float32


def time_embedding(mesh: Mesh, repeats: int, vocabulary: int = VOCABULARY, width: int = WIDTH) -> dict[str, Any]:
    """Time steps of both, and tell what a rank keeps and the most that it held; of all ranks the largest."""
    rows = {}
    for name in ("split", "whole"):
        run, num_parameters = _build(mesh, name == "split", vocabulary, width)
        give_back_freed_memory()  # what was there while weights were drawn
        held = _held_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        seconds = _measure(run, max(2, repeats // 3))
        rows[name] = {
            "ms": round(1e3 * seconds, 1),
            "parameters": num_parameters,
            "state_bytes": _ADAM_BYTES * num_parameters,
            "peak_bytes": _largest(_held_bytes("VmHWM") - held + 4 * num_parameters),
        }
        del run
        gc.collect()
    return {"V": vocabulary, "D": width, "T": TOKENS, "rows": rows}


def _build(mesh: Mesh, is_split: bool, vocabulary: int, width: int) -> tuple[Callable[[], None], int]:
    """Return a step, and how many of a rank's parameters are table and head."""
    config = ModelConfig(
        model_type="llama",
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        intermediate_size=1,
    )
    model = build_model(config, device="meta")
    model = apply_parallel(model, mesh, split_embedding=is_split).to_empty(device="cpu")
    init_weights(model, config, 0, own_part)
    gradients = share_gradients(model, mesh, _BUCKET_BYTES)
    assert model.head is not None, "the table is not the head"
    kept = [model.decoder.embedding.weight, model.head.weight]
    source = torch.Generator().manual_seed(mesh.rank)
    ids_BS, labels_BS = torch.randint(vocabulary, (2, 1, TOKENS), generator=source)

    def step() -> None:
        gradients.clear()
        hidden_BSD = model.decoder.embedding(ids_BS).bfloat16()
        gradients.expect_last()
        model.cross_entropy_sum(hidden_BSD, labels_BS).backward()
        gradients.complete()

    return step, sum(local_part(each).numel() for each in kept)


def _measure(run: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 1):
        dist.barrier()
        began = time.perf_counter()
        run()
        dist.barrier()
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])


def _largest(value: int) -> int:
    largest = torch.tensor(value)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def _held_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))
