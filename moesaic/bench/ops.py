"""`moesaic bench ops`: the mixture of experts against its peers, the dense MLP and the machine, in one run.

A case is a level (forward, or forward and backward), a shape, a dtype, a routing and a number of tokens. All candidates
compute on the same memory and take turns; what they compute is compared first. A few tokens cost the reading of their
experts, so there the turns go round many layers, and no candidate finds its weights in a cache.
"""

import itertools
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.bench.candidate import CANDIDATES, RIVALS, Candidate, Prepared
from moesaic.bench.compare import check_equal
from moesaic.bench.deepspeed import NOT_MEASURED, DeepSpeedPeer, find_peer, share_within_capacity
from moesaic.bench.measure import describe_machine, measure, summarise
from moesaic.bench.peer import transformers_version
from moesaic.bench.shape import Shape
from moesaic.bench.target import check_targets, time_of
from moesaic.bench.train import bench_model
from moesaic.bench.workload import ROUTINGS, Inputs, Layer, build_layers, count_cold_layers, draw_inputs
from moesaic.errors import ConfigError
from moesaic.hw.allocator import keep_freed_memory
from moesaic.ops.cpu.bandwidth import read_bandwidth

Progress = Callable[[int, int, str], None]
Report = dict[str, Any]

SHAPES = {
    "narrow": Shape(1024, 1024, 512, 32, 4),
    "olmoe": Shape(1024, 2048, 1024, 64, 8),
    "mixtral": Shape(1024, 1024, 3584, 8, 2),
}
GROUPS = (
    ("narrow", torch.bfloat16),
    ("narrow", torch.float32),
    ("olmoe", torch.bfloat16),
    ("mixtral", torch.bfloat16),
)
TOKENS = (1, 4, 16, 64, 256, 1024)
# 290M parameters.
MODEL = Shape(1024, 1024, 512, 16, 4)
_MODEL_LAYERS, _MODEL_VOCABULARY = 8, 32768
# Up to here the weights are read from memory, each measurement in another layer.
_COLD_TOKENS = 16
# Some hundred times slower than the rest backwards: measured once, on its own.
_SLOW = "eager"
# The process of DeepSpeed waits for work in a loop for some milliseconds before it sleeps.
_PAUSE_S = 0.01


@dataclass(frozen=True)
class Case:
    """One measurement: level 'forward', 'forward_backward' or 'train_step'; the last has a routing of its own."""

    level: str
    shape_name: str
    dtype: torch.dtype
    routing: str
    tokens: int

    @property
    def name(self) -> str:
        """Tell the case in words, which `--case` picks it by."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.level} {self.shape_name} {dtype} {self.routing} T{self.tokens}"

    @property
    def is_cold(self) -> bool:
        """Whether the weights are to come from memory."""
        return self.level == "forward" and self.tokens <= _COLD_TOKENS


def list_cases(words: str = "") -> list[Case]:
    """List the cases whose names hold all these words.

    Raises:
        ConfigError: there is none.
    """
    cases = [
        Case(level, shape_name, dtype, routing, tokens)
        for shape_name, dtype in GROUPS
        for routing in ROUTINGS
        for level, counts in (("forward", TOKENS), ("forward_backward", TOKENS[-1:]))
        for tokens in counts
    ]
    cases.append(Case("train_step", "300M", torch.bfloat16, "learned", MODEL.tokens))
    chosen = [case for case in cases if set(words.split()) <= set(case.name.split())]
    if not chosen:
        raise ConfigError(f"no case is called '{words}'", f"name words of cases such as '{cases[0].name}'")
    return chosen


def bench_ops(repeats: int, words: str, peers: Path, progress: Progress) -> Report:
    """Measure the chosen cases; return the result as plain data.

    Args:
        repeats: of each candidate in each case; five times as many where a call takes little.
        words: as `list_cases`.
        peers: folder of the environment that has DeepSpeed; without it DeepSpeed is not measured.
        progress: called before each case with its number, the number of cases, and its name.

    Raises:
        ConfigError: there is no such case, or no transformers.
        MoesaicError: candidates differ in what they compute.
    """
    cases = list_cases(words)
    keep_freed_memory()  # as `moesaic train` does; it serves the peers as well
    torch.manual_seed(0)
    reports: list[Report] = []
    needs_peer = any(case.level == "forward_backward" for case in cases)
    peer = find_peer(peers) if needs_peer else None
    machine = {**describe_machine(), "transformers": transformers_version()}
    machine["deepspeed"] = peer.version if peer else NOT_MEASURED if needs_peer else "not asked for"
    with closing(peer) if peer else nullcontext():
        for (shape_name, dtype), group in itertools.groupby(cases, key=lambda case: (case.shape_name, case.dtype)):
            layers: list[Layer] = []  # the last group's go first
            for case in group:
                progress(len(reports), len(cases), case.name)
                if case.level == "train_step":
                    reports.append(_bench_train_step(case, repeats))
                    continue
                shape = SHAPES[shape_name]
                layers = layers or build_layers(shape, dtype, count_cold_layers(shape, dtype))
                if case.level == "forward":
                    reports.append(_bench_forward(case, layers, repeats))
                else:
                    reports.append(_bench_backward(case, layers[0], repeats, peer))
    progress(len(cases), len(cases), "")
    _compare_bandwidth(reports)
    return {
        "benchmark": "ops",
        "machine": machine,
        "repeats": repeats,
        "cases": reports,
        "targets": check_targets(reports),
    }


@torch.no_grad()
def _bench_forward(case: Case, layers: list[Layer], repeats: int) -> Report:
    shape, num_layers = replace(SHAPES[case.shape_name], tokens=case.tokens), len(layers) if case.is_cold else 1
    # One more than the layers, so that a layer meets other inputs when its turn comes again.
    inputs = [draw_inputs(shape, case.dtype, case.routing, seed) for seed in range(num_layers + case.is_cold)]
    prepared = {
        name: [candidate.prepare(layer, shape) for layer in layers[:num_layers]]
        for name, candidate in CANDIDATES.items()
        if candidate.takes(case.tokens, case.dtype)
    }
    _check_results({name: each[0].forward(inputs[0]) for name, each in prepared.items()})
    calls = {
        # Each starts elsewhere, and meets other tokens there than the others do, so that none reads what another has
        # brought into the cache: low-bit weights are read by one candidate only, and would be the only cold ones.
        name: _take_turns(each, inputs, first=index * num_layers // len(prepared), shift=index)
        for index, (name, each) in enumerate(prepared.items())
    }
    if not case.is_cold:
        return _report(case, shape, measure(calls, repeats))
    bandwidth = read_bandwidth()
    report = _report(case, shape, measure(calls, 5 * repeats))
    active = sum(len(each.expert_ids_TK.unique()) for each in inputs) / len(inputs)
    read_per_s = active * shape.expert_size * case.dtype.itemsize / report["times"]["moesaic"]["median_ms"] * 1e3
    report["layers"] = num_layers
    report["read_gb_per_s"], report["bandwidth_gb_per_s"] = round(read_per_s / 1e9, 2), round(bandwidth / 1e9, 2)
    return report


def _bench_backward(case: Case, layer: Layer, repeats: int, peer: DeepSpeedPeer | None) -> Report:
    shape = SHAPES[case.shape_name]
    inputs = draw_inputs(shape, case.dtype, case.routing, seed=0)
    prepared = {name: each.prepare(layer, shape) for name, each in CANDIDATES.items() if each.trains}
    slow = prepared.pop(_SLOW)
    _check_results({name: each.forward(inputs) for name, each in prepared.items()})
    expected = prepared["moesaic"].backward(inputs)
    _check_gradients("grouped_mm", prepared["grouped_mm"].backward(inputs), expected)
    calls: dict[str, Callable[[], object]] = {name: partial(each.backward, inputs) for name, each in prepared.items()}
    if peer is not None:
        result_TD, grad_TD = peer.load(layer, inputs)
        check_equal("the result of deepspeed", result_TD, prepared["moesaic"].forward(inputs).detach())
        check_equal("the gradient of deepspeed", grad_TD, _present(expected[0]))
        calls["deepspeed"] = peer.step
    del expected
    times = measure(calls, max(3, repeats // 2), warmup=2, pause_s=_PAUSE_S if peer else 0.0)
    if (case.shape_name, case.dtype, case.routing) == ("narrow", torch.bfloat16, "uniform"):
        times |= measure({_SLOW: partial(slow.backward, inputs)}, repeats=3, warmup=1)
    report = _report(case, shape, times)
    if peer is not None:
        report["deepspeed_rows_kept"] = round(share_within_capacity(inputs, shape), 3)
    return report


def _bench_train_step(case: Case, repeats: int) -> Report:
    report = bench_model(MODEL, case.dtype, max(3, repeats // 2), _MODEL_LAYERS, _MODEL_VOCABULARY)
    return {**report, "name": case.name, "level": case.level, "layers": _MODEL_LAYERS}


def _compare_bandwidth(reports: list[Report]) -> None:
    """Hold what was read against the fastest reading of the run: a slow moment of the machine flatters nothing."""
    fastest = max((report["bandwidth_gb_per_s"] for report in reports if "bandwidth_gb_per_s" in report), default=None)
    for report in reports:
        if "read_gb_per_s" in report:
            report["percent_of_bandwidth"] = round(100 * report["read_gb_per_s"] / fastest, 1)


def _take_turns(prepared: list[Prepared], inputs: list[Inputs], first: int, shift: int) -> Callable[[], Tensor]:
    """Return a call that goes round the layers from `first` on, and round the inputs from `shift` further on."""
    start = (first + shift) % len(inputs)
    layers = itertools.cycle(prepared[first:] + prepared[:first])
    tokens = itertools.cycle(inputs[start:] + inputs[:start])
    return lambda: next(layers).forward(next(tokens))


def _check_results(results: dict[str, Tensor]) -> None:
    for name, found in results.items():
        candidate: Candidate = CANDIDATES[name]
        if candidate.rival is not None:
            check_equal(f"the result of {name}", found, results[candidate.rival], candidate.limit)


def _check_gradients(name: str, found: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> None:
    for what, each, other in zip(("tokens", "routing weights", "gate_up", "down"), found, expected, strict=True):
        check_equal(f"the gradient of {what} of {name}", _present(each), _present(other))


def _present(gradient: Tensor | None) -> Tensor:
    assert gradient is not None, "every leaf of a mixture takes part in it"
    return gradient


def _report(case: Case, shape: Shape, times: dict[str, list[float]]) -> Report:
    products = 1 if case.level == "forward" else 3  # backward: one for the inputs and one for the weights
    flops = 2 * products * shape.tokens * shape.chosen * shape.expert_size
    figures = {name: summarise(values) for name, values in times.items()}
    for each in figures.values():
        each["gflop_per_s"] = round(flops / each["median_ms"] / 1e6, 1)
    ours = figures["moesaic"]["median_ms"]
    rivals = {rival: time_of(rival, figures) for rival in RIVALS}
    ratios = {f"over_{rival}": round(time / ours, 3) for rival, time in rivals.items() if time is not None}
    where = {"name": case.name, "level": case.level, "dtype": str(case.dtype).removeprefix("torch.")}
    return {**where, "routing": case.routing, **shape.dims(), "times": figures, **ratios}
