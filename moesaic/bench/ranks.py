"""`moesaic bench train --ranks N`: experts that are spread over processes, against DeepSpeed-MoE, classic and AutoEP.

A mixture alone, forward and backward, and a language model with four of them, gradients summed over the ranks.

Every program is started by torchrun, gloo and one thread a process, and they take turns. They get the same weights and
tokens, and what comes out is compared where nothing is dropped.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from moesaic.bench.compare import check_equal
from moesaic.bench.measure import describe_machine, summarise
from moesaic.bench.shape import Shape
from moesaic.bench.target import hold
from moesaic.errors import ConfigError, MoesaicError
from moesaic.models.model import build_model

# Tokens are those of all ranks.
SHAPES = (Shape(2048, 512, 1024, 16, 2), Shape(2048, 512, 512, 64, 8), Shape(256, 512, 1024, 8, 2))
MODEL, NUM_LAYERS = Shape(1024, 512, 512, 16, 2), 4
_LENGTH = 128
_VOCABULARY = 8192
ROUNDS = 2
_TIMEOUT_S = 300
_WARMUP = 3
# One of so many tokens is compared.
_EVERY = 16


@dataclass(frozen=True)
class Program:
    """Somebody who can compute the layer.

    Attributes:
        file: of the program, as `ranks_worker.py` reads it, by its name.
        way: which of its ways to compute.
        comparable: dtypes in which it computes the same as ours.
        faster: tokens a second of ours over its own that are aimed at; None: it is ours.
    """

    file: str
    way: str = ""
    comparable: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    faster: float | None = 1.33


PROGRAMS = {
    "moesaic": Program("ranks_moesaic", faster=None),
    "deepspeed": Program("ranks_deepspeed", "dropless"),
    # It leaves out rows of crowded experts.
    "deepspeed_capacity": Program("ranks_deepspeed", "capacity", comparable=()),
    # Its router computes in the dtype of the tokens, and chooses differently in bfloat16.
    "deepspeed_autoep": Program("ranks_deepspeed", "auto", comparable=(torch.float32,)),
}
# Peak memory of ours over that of a peer.
_LESS_MEMORY = 0.82


def bench_ranks(num_ranks: int, repeats: int, peers: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure all cases; return the result as plain data.

    Args:
        num_ranks: processes.
        repeats: steps of each program in each of three rounds.
        peers: the environment that has DeepSpeed.
        report: is told what is being measured.

    Raises:
        ConfigError: the ranks do not divide tokens and experts, or DeepSpeed has no environment.
        MoesaicError: a program failed, or they compute different things.
    """
    odd = [shape for shape in (*SHAPES, MODEL) if shape.experts % num_ranks or shape.tokens % num_ranks]
    if odd:
        raise ConfigError(f"--ranks {num_ranks} does not divide {odd[0].experts} experts", "give 2, 4 or 8")
    if not (peers / "deepspeed.done").is_file():
        raise ConfigError(f"there is no DeepSpeed in '{peers}'", "make peers, or name the environment with --peers")
    cases: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for shape, num_layers in [*((shape, 0) for shape in SHAPES), (MODEL, NUM_LAYERS)]:
            case = {**shape.dims(), "layers": num_layers, "dtype": str(dtype).removeprefix("torch.")}
            report(f"{num_ranks} ranks {case}")
            answers = _take_turns(shape, num_layers, dtype, num_ranks, repeats, peers)
            versions |= {name: each[0]["version"] for name, each in answers.items()}
            cases.append({**case, **_compare(answers, shape)})
    machine = {**describe_machine(), "ranks": num_ranks, "deepspeed": versions["deepspeed"]}
    return {"benchmark": "train_ranks", "machine": machine, "repeats": repeats, "cases": cases}


def _take_turns(
    shape: Shape, num_layers: int, dtype: torch.dtype, num_ranks: int, repeats: int, peers: Path
) -> dict[str, list[dict[str, Any]]]:
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as folder:
        tensors = Path(folder) / "tensors"
        drawn = _draw_model(shape, num_layers, dtype, num_ranks) if num_layers else _draw_layer(shape, dtype, num_ranks)
        save_file(drawn, tensors)
        for turn in range(ROUNDS):
            # There and back: what comes first is not always the same.
            for name, program in list(PROGRAMS.items())[:: 1 if turn % 2 == 0 else -1]:
                request = {
                    "program": str(Path(__file__).with_name(f"{program.file}.py")),
                    "way": program.way,
                    "tensors": str(tensors),
                    "chosen": shape.chosen,
                    "layers": num_layers,
                    "warmup": _WARMUP,
                    "steps": repeats,
                    "every": _EVERY,
                }
                python = sys.executable if name == "moesaic" else str(peers.absolute() / "bin" / "python")
                answers[name].append(_ask(python, request, num_ranks, Path(folder)))
    expected = torch.tensor(answers["moesaic"][0]["result"]).to(dtype)
    for name, program in PROGRAMS.items():
        if dtype in program.comparable:
            check_equal(name, torch.tensor(answers[name][0]["result"]).to(dtype), expected)
    return answers


def _draw_layer(shape: Shape, dtype: torch.dtype, num_ranks: int) -> dict[str, torch.Tensor]:
    draw = _Source(dtype)
    tokens = shape.tokens // num_ranks
    return {
        "router": draw.normal(shape.experts, shape.width, scale=shape.width**-0.5).float(),
        "gate_up": draw.normal(shape.experts, 2 * shape.expert_width, shape.width, scale=shape.width**-0.5),
        "down": draw.normal(shape.experts, shape.width, shape.expert_width, scale=shape.expert_width**-0.5),
        **{f"hidden.{rank}": draw.normal(tokens, shape.width) for rank in range(num_ranks)},
        **{f"grad.{rank}": draw.normal(tokens, shape.width) for rank in range(num_ranks)},
    }


def _draw_model(shape: Shape, num_layers: int, dtype: torch.dtype, num_ranks: int) -> dict[str, torch.Tensor]:
    draw = _Source(dtype)
    model = build_model(shape.config(num_layers, _VOCABULARY), "meta")
    sequences = shape.tokens // num_ranks // _LENGTH
    return {
        **{
            name: torch.ones(each.shape, dtype=dtype)
            if each.ndim == 1
            else draw.normal(*each.shape, scale=each.shape[-1] ** -0.5)
            for name, each in model.named_parameters()
        },
        **{f"{name}.{rank}": draw.ids(sequences, _LENGTH) for name in ("ids", "labels") for rank in range(num_ranks)},
    }


class _Source:
    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *sizes: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(sizes, generator=self._generator)).to(self._dtype)

    def ids(self, *sizes: int) -> torch.Tensor:
        return torch.randint(0, _VOCABULARY, sizes, generator=self._generator)


def _ask(python: str, request: dict[str, Any], num_ranks: int, folder: Path) -> dict[str, Any]:
    """Start the ranks of a program and return what the first one answers."""
    asked, script = folder / "request.json", Path(__file__).with_name("ranks_worker.py")
    asked.write_text(json.dumps(request))
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    # As `keep_freed_memory` sets it for ours.
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
    # A script's own folder has a module called deepspeed: it is not to be searched.
    settings = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONSAFEPATH": "1", **kept}
    done = subprocess.run(
        [*launcher, script, asked],
        capture_output=True,
        text=True,
        env=os.environ | settings,
        cwd=folder,
        timeout=_TIMEOUT_S,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and answers:
        return json.loads(answers[-1])
    told = [line for line in done.stderr.splitlines() if "Error" in line] or [f"status {done.returncode}"]
    name = Path(request["program"]).stem
    raise MoesaicError(f"the ranks of {name} ended: {told[0].strip()}", "where a package is missing: make peers")


def _compare(answers: dict[str, list[dict[str, Any]]], shape: Shape) -> dict[str, Any]:
    times = {name: [second for each in rounds for second in each["seconds"]] for name, rounds in answers.items()}
    peaks = {name: statistics.median(each["peak_bytes"] for each in rounds) for name, rounds in answers.items()}
    ours = statistics.median(times["moesaic"])
    targets = []
    for name, program in PROGRAMS.items():
        if program.faster is None:
            continue
        faster, memory = statistics.median(times[name]) / ours, peaks["moesaic"] / peaks[name]
        targets += [
            hold(f"{name} / moesaic, time", "least", program.faster, faster),
            hold(f"moesaic / {name}, peak memory", "most", _LESS_MEMORY, memory),
        ]
    return {
        "times": {name: summarise(each) for name, each in times.items()},
        "tokens_per_s": {name: round(shape.tokens / statistics.median(each)) for name, each in times.items()},
        "peak_mib": {name: round(peak / 2**20, 1) for name, peak in peaks.items()},
        "targets": targets,
    }
