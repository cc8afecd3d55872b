"""Messages between ranks, timed: every rank to every other in one hop and in two, and gradients fused and one by one.

All ranks must call alike; the time of a message is that of its slowest rank.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from moesaic.comm.all_to_all import AllToAll, FlatAllToAll
from moesaic.comm.hierarchical import HierarchicalAllToAll
from moesaic.comm.mesh import Mesh
from moesaic.comm.profile import agree, even_message, fit_all_gather, fit_all_reduce, fit_exchange
from moesaic.config.model import ModelConfig
from moesaic.models.model import build_model
from moesaic.parallel.gradient import build_buckets

# Bytes from a rank to each other one.
MESSAGE_BYTES = tuple(2**power for power in range(6, 21, 2))
# Up to this, a message counts as a small one.
SMALL_BYTES = 2**12
BUCKET_BYTES = tuple(2**power for power in (16, 20, 22, 24, 26))
_MOST_BYTES = 2**22
# On a slow link a sum takes seconds: of so many turns one is taken.
_RARELY = 3
# Longer messages are not measured when one has taken so long.
_LONGEST_S = 0.2


def take_turns(candidates: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each candidate, which all ranks begin together; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(repeats + 1):
        for name, run in candidates.items():
            dist.barrier()
            began = time.perf_counter()
            run()
            seconds = agree(time.perf_counter() - began)
            if round_:
                times[name].append(seconds)
    return {name: statistics.median(each) for name, each in times.items()}


def time_all_to_all(mesh: Mesh, repeats: int) -> list[dict[str, Any]]:
    """Time one message of each size, flat and, where the ranks fill several nodes, in two hops."""
    ways: dict[str, AllToAll] = {"flat": FlatAllToAll(mesh.tokens)}
    if mesh.nodes is not None:
        ways["hierarchical"] = HierarchicalAllToAll(mesh.nodes.get_group("node"), mesh.nodes.get_group("rail"))
    rows = []
    for num_bytes in MESSAGE_BYTES:
        candidates = {name: _sender(way, num_bytes * way.size) for name, way in ways.items()}
        # Short ones come and go with the scheduler of the processors: they are sent more often.
        seconds = take_turns(candidates, repeats if num_bytes > SMALL_BYTES else 5 * repeats)
        rows.append({"bytes_a_pair": num_bytes, "ms": {name: round(each * 1e3, 3) for name, each in seconds.items()}})
        if max(seconds.values()) > _LONGEST_S:
            break
    return rows


def _sender(way: AllToAll, num_bytes: int) -> Callable[[], object]:
    exchange, rows = even_message(way, num_bytes)
    return lambda: exchange.send(rows)


def time_buckets(group: dist.ProcessGroup, repeats: int) -> list[dict[str, Any]]:
    """Time the sum of a small model's dense gradients, one by one and in buckets of several sizes."""
    shapes = _dense_shapes()
    candidates: dict[str, list[Any]] = {"unfused": build_buckets_of(shapes, group, 1)}
    candidates |= {str(num_bytes): build_buckets_of(shapes, group, num_bytes) for num_bytes in BUCKET_BYTES}
    seconds = take_turns({name: _summer(buckets) for name, buckets in candidates.items()}, -(-repeats // _RARELY))
    return [
        {
            "bucket_bytes": name if name == "unfused" else int(name),
            "collectives": len(buckets),
            "bytes": sum(bucket.num_bytes for bucket in buckets),
            "ms": round(seconds[name] * 1e3, 3),
        }
        for name, buckets in candidates.items()
    ]


def build_buckets_of(shapes: list[torch.Size], group: dist.ProcessGroup, num_bytes: int) -> list[Any]:
    """Return buckets of new parameters of these shapes."""
    return list(build_buckets([nn.Parameter(torch.zeros(shape)) for shape in shapes], group, num_bytes))


def _summer(buckets: list[Any]) -> Callable[[], None]:
    def run() -> None:
        for bucket in buckets:
            bucket.send()
        for bucket in buckets:
            bucket.wait()

    return run


def _dense_shapes() -> list[torch.Size]:
    """Return the shapes of the dense parameters of a model of four layers of width 512."""
    config = ModelConfig(
        model_type="mixtral",
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=1024,
        num_experts=8,
        num_experts_per_tok=2,
    )
    named = build_model(config, device="meta").named_parameters()
    return [weight.shape for name, weight in named if ".experts." not in name]


def fit_messages(mesh: Mesh) -> dict[str, dict[str, float]]:
    """Return what each kind of message costs between these ranks, by its bytes up to 4 MiB."""
    flat = FlatAllToAll(mesh.tokens)
    costs = {
        "all_to_all": fit_exchange(flat, _MOST_BYTES),
        "all_gather": fit_all_gather(mesh.everyone, _MOST_BYTES),
        "all_reduce": fit_all_reduce(mesh.everyone, _MOST_BYTES),
    }
    return {name: asdict(cost) for name, cost in costs.items()}
