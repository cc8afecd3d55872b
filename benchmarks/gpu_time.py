"""The mixture and its kernels timed on a CUDA device: part of `gpu.py`."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from gpu_check import Problem, Shape, draw_problem, swiglu
from torch import Tensor

from moesaic.bench.measure import summarise
from moesaic.ops import mixture, permute
from moesaic.ops.gpu import mixture as gpu_mixture
from moesaic.ops.gpu import permute as gpu_permute
from moesaic.ops.gpu import route as gpu_route
from moesaic.ops.gpu import swiglu as gpu_swiglu
from moesaic.testing.tolerance import TOLERANCES, relative_error

# Larger than any second-level cache: written between two calls, so that none finds its input there.
FLUSH_BYTES = 2**28
PEAK_COPY_BYTES = 2**30
PEAK_PRODUCT_WIDTH = 8192
Run = Callable[[], object]
TensorFn = Callable[..., Tensor]
# A function and the tensors that it is called with, all of them differentiable.
Candidate = tuple[TensorFn, list[Tensor]]

TIMED = [
    Shape(*layer, num_tokens)
    for layer in ((1024, 512, 32, 4), (2048, 1024, 64, 8), (1024, 3584, 8, 2))
    for num_tokens in (1, 16, 256, 1024, 8192)
]


def time_all(repeats: int) -> dict[str, Any]:
    """Measure what the device can do at most, and every candidate at every shape; say each as it comes."""
    result: dict[str, Any] = {"dtype": "bfloat16", "peaks": measure_peaks(repeats), "mixture": [], "parts": []}
    for shape in TIMED:
        problem = draw_problem(shape, torch.bfloat16, "cuda")
        result["mixture"].append(time_mixture(problem, shape, repeats))
        result["parts"].append(time_parts(problem, shape, repeats))
        print(json.dumps(result["mixture"][-1]), file=sys.stderr)
    return result


def time_on_device(candidates: dict[str, Run], repeats: int, warmup: int = 5) -> dict[str, dict[str, float]]:
    """Time candidates in turns, each from a cold cache; return median and inter-quartile range."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(warmup + repeats):
        for name, run in candidates.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            run()
            end.record()
            end.synchronize()
            if repeat >= warmup:
                times[name].append(start.elapsed_time(end) / 1e3)
    return {name: summarise(each) for name, each in times.items()}


def both_ways(candidates: dict[str, Candidate], repeats: int) -> dict[str, Any]:
    """Time functions of tensors forward, and forward with the gradients of all of them."""
    forward: dict[str, Run] = {}
    backward: dict[str, Run] = {}
    for name, (run, inputs) in candidates.items():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        steepness = torch.randn_like(run(*inputs))
        forward[name] = lambda run=run, inputs=inputs: run(*inputs)  # type: ignore[misc]
        backward[name] = lambda run=run, leaves=leaves, slope=steepness: torch.autograd.grad(  # type: ignore[misc]
            run(*leaves), leaves, slope
        )
    return {
        "forward": time_on_device(forward, repeats),
        "forward_and_backward": time_on_device(backward, repeats),
    }


def time_mixture(problem: Problem, shape: Shape, repeats: int) -> dict[str, Any]:
    """Time the mixture, grouping included, after comparing the candidates that compute the same."""
    inputs = [problem.hidden_TD, problem.weights_N, problem.gate_up, problem.down]

    def moesaic(hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return mixture.mix_experts(hidden_TD, weights_N, gate_up, down, permute.group_by_expert(*problem.pairs))

    def kernels(hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return gpu_mixture.mix_experts(hidden_TD, weights_N, gate_up, down, gpu_route.group_by_expert(*problem.pairs))

    candidates: dict[str, Candidate] = {"moesaic": (moesaic, inputs), "kernels": (kernels, inputs)}
    if (peer := build_peer(problem, shape)) is not None:
        candidates["transformers"] = (peer, inputs)
    outputs = {name: run(*given) for name, (run, given) in candidates.items()}
    apart = {name: relative_error(out, outputs["moesaic"]) for name, out in outputs.items()}
    if max(apart.values()) > 2 * TOLERANCES[problem.hidden_TD.dtype]:
        raise ArithmeticError(f"the candidates differ at {shape}: {apart}")

    width = shape.K * shape.F
    weights = torch.randn(2 * width, shape.D), torch.randn(shape.D, width)
    dense = [problem.hidden_TD, *(weight.mul_(weight.shape[1] ** -0.5).to(problem.hidden_TD) for weight in weights)]
    candidates["dense"] = (lambda x, gate_up, down: swiglu(x @ gate_up.t()) @ down.t(), dense)
    flops = 6 * shape.T * width * shape.D
    return {**asdict(shape), "forward_flops": flops, "apart": apart, **both_ways(candidates, repeats)}


def build_peer(problem: Problem, shape: Shape) -> TensorFn | None:
    """Return transformers' experts with its `grouped_mm`, as a function of our tensors; None without transformers."""
    try:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    except ImportError:
        return None
    config = MixtralConfig(
        hidden_size=shape.D, intermediate_size=shape.F, num_local_experts=shape.E, num_experts_per_tok=shape.K
    )
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        experts = MixtralExperts(config)

    def run(hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        weights_TK = weights_N.view(shape.T, shape.K).to(hidden_TD.dtype)
        parameters = {"gate_up_proj": gate_up, "down_proj": down}
        return torch.func.functional_call(experts, parameters, (hidden_TD, problem.expert_ids_TK, weights_TK))

    return run


def time_parts(problem: Problem, shape: Shape, repeats: int) -> dict[str, Any]:
    """Time each kernel against torch's own functions for the same."""
    scores_TE, expert_ids_N, permutation = problem.scores_TE, problem.pairs[1], permute.group_by_expert(*problem.pairs)
    rows_ND = problem.hidden_TD[permutation.token_ids_N]
    hidden_N2F = torch.randn(len(rows_ND), 2 * shape.F, device=rows_ND.device, dtype=rows_ND.dtype)

    def combine(rows_ND: Tensor, weights_N: Tensor) -> Tensor:
        rows_TKD = rows_ND[permutation.inverse_N].view(shape.T, shape.K, shape.D)
        return torch.einsum("tkd,tk->td", rows_TKD, weights_N.view(shape.T, shape.K).to(rows_ND.dtype))

    choices: dict[str, Run] = {
        "kernel": lambda: gpu_route.top_k(scores_TE, shape.K),
        "torch": lambda: scores_TE.topk(shape.K).indices,
    }
    groups: dict[str, Run] = {
        "kernel": lambda: gpu_route.group_by_expert(*problem.pairs),
        "torch": lambda: (expert_ids_N.argsort(stable=True), torch.bincount(expert_ids_N, minlength=shape.E)),
    }
    pairs_of_functions: dict[str, tuple[TensorFn, TensorFn, list[Tensor]]] = {
        "permute": (
            lambda hidden: gpu_permute.permute(hidden, permutation),
            lambda hidden: hidden.index_select(0, permutation.token_ids_N),
            [problem.hidden_TD],
        ),
        "combine": (
            lambda rows, weights: gpu_permute.combine(rows, weights, permutation),
            combine,
            [rows_ND, problem.weights_N],
        ),
        "swiglu": (gpu_swiglu.swiglu, swiglu, [hidden_N2F]),
    }
    return {
        **asdict(shape),
        # What moves forward, each number read or written once: rows one way, tokens the other; gate, up and product.
        "moved_bytes": {
            "permute": (shape.T + len(rows_ND)) * shape.D * rows_ND.element_size(),
            "combine": (shape.T + len(rows_ND)) * shape.D * rows_ND.element_size(),
            "swiglu": 3 * len(rows_ND) * shape.F * rows_ND.element_size(),
        },
        "top_k": {"forward": time_on_device(choices, repeats)},
        "group_by_expert": {"forward": time_on_device(groups, repeats)},
        **{
            name: both_ways({"kernel": (kernel, inputs), "torch": (torchs, inputs)}, repeats)
            for name, (kernel, torchs, inputs) in pairs_of_functions.items()
        },
    }


def measure_peaks(repeats: int) -> dict[str, float]:
    """Return the bandwidth of a copy (reads and writes) and the rate of a bfloat16 matrix product."""
    source = torch.zeros(PEAK_COPY_BYTES, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    left = torch.randn(PEAK_PRODUCT_WIDTH, PEAK_PRODUCT_WIDTH, device="cuda").bfloat16()
    candidates: dict[str, Run] = {"copy": lambda: target.copy_(source), "product": lambda: left @ left.t()}
    times = time_on_device(candidates, repeats)
    return {
        "bandwidth_gb_per_s": round(2 * PEAK_COPY_BYTES / times["copy"]["median_ms"] / 1e6, 1),
        "product_tflop_per_s": round(2 * PEAK_PRODUCT_WIDTH**3 / times["product"]["median_ms"] / 1e9, 1),
    }
