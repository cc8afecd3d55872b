"""Every GPU kernel against its oracle: part of `gpu.py`, which sets triton's interpreter before it imports this."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moesaic.ops import route
from moesaic.ops.gpu import mixture as gpu_mixture
from moesaic.ops.gpu import permute as gpu_permute
from moesaic.ops.gpu import route as gpu_route
from moesaic.ops.gpu import swiglu as gpu_swiglu
from moesaic.ops.gpu.refusal import DTYPES
from moesaic.ops.permutation import Permutation
from moesaic.ops.reference import expert_mlp as mlp_oracle
from moesaic.ops.reference import permute as permute_oracle
from moesaic.ops.reference import route as route_oracle
from moesaic.testing.tolerance import TOLERANCES, relative_error


@dataclass(frozen=True)
class Shape:
    """A layer: width D, expert width F, experts E, K of them chosen by each of T tokens."""

    D: int
    F: int
    E: int
    K: int
    T: int


# Several blocks and idle experts; two tiles of width, every expert for a token; one token, experts in two blocks.
CHECKED = (Shape(64, 48, 13, 3, 130), Shape(1152, 24, 5, 5, 9), Shape(16, 1064, 40, 1, 1))
CHECKED_INTERPRETED = (Shape(16, 24, 5, 2, 7), Shape(16, 8, 3, 3, 1))


@dataclass(frozen=True)
class Problem:
    """The tensors of a shape, and who goes where; the weights stand in the order of the pairs."""

    hidden_TD: Tensor
    scores_TE: Tensor
    token_ids_N: Tensor
    expert_ids_TK: Tensor
    weights_N: Tensor
    gate_up: Tensor
    down: Tensor

    @property
    def pairs(self) -> tuple[Tensor, Tensor, int, int]:
        """Return the arguments of `group_by_expert`."""
        return self.token_ids_N, self.expert_ids_TK.reshape(-1), len(self.hidden_TD), len(self.down)


def draw_problem(shape: Shape, dtype: torch.dtype, device: str) -> Problem:
    """Draw numbers of which every product is near one, and choose the best of random scores."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(size, generator=generator, device=device).mul_(scale).to(dtype)

    scores_TE = draw(shape.T, shape.E)
    expert_ids_TK = route.top_k(scores_TE, shape.K)
    return Problem(
        hidden_TD=draw(shape.T, shape.D),
        scores_TE=scores_TE,
        token_ids_N=torch.arange(shape.T, device=device).repeat_interleave(shape.K),
        expert_ids_TK=expert_ids_TK,
        weights_N=scores_TE.float().gather(1, expert_ids_TK).softmax(-1).reshape(-1),
        gate_up=draw(shape.E, 2 * shape.F, shape.D, scale=shape.D**-0.5),
        down=draw(shape.E, shape.D, shape.F, scale=shape.F**-0.5),
    )


def check(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Return, by name, how far each kernel's result and gradients lie from its oracle's; integers give 0 or inf."""
    problem = draw_problem(shape, dtype, device)
    where = token_ids_N, expert_ids_N = problem.token_ids_N.cpu(), problem.expert_ids_TK.reshape(-1).cpu()
    order_N, counts_E = expert_ids_N.argsort(stable=True), torch.bincount(expert_ids_N, minlength=shape.E)
    starts_T = torch.arange(shape.T) * shape.K
    expected = Permutation(token_ids_N[order_N], order_N.argsort(), starts_T, counts_E)

    found = gpu_route.group_by_expert(*problem.pairs)
    same_groups = all(torch.equal(vars(found)[name].cpu(), vars(expected)[name]) for name in vars(expected))
    ids_TK = gpu_route.top_k(problem.scores_TE, shape.K).cpu()
    same_ids = torch.equal(ids_TK, route_oracle.top_k(problem.scores_TE, shape.K))
    errors = {"top_k": 0.0 if same_ids else float("inf"), "group_by_expert": 0.0 if same_groups else float("inf")}

    def permute_slowly(hidden_TD: Tensor) -> Tensor:
        return permute_oracle.permute(hidden_TD, *where, shape.E)

    def combine_slowly(rows_ND: Tensor, weights_N: Tensor) -> Tensor:
        return permute_oracle.combine(rows_ND, weights_N, *where, shape.T)

    def mix_slowly(hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        rows_ND = mlp_oracle.expert_mlp(permute_slowly(hidden_TD), gate_up, down, counts_E)
        return combine_slowly(rows_ND, weights_N)

    def mix(hidden_TD: Tensor, weights_N: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return gpu_mixture.mix_experts(hidden_TD, weights_N, gate_up, down, found)

    hidden_TD, weights_N = problem.hidden_TD, problem.weights_N
    rows_ND, hidden_N2F = hidden_TD[found.token_ids_N], torch.randn(len(weights_N), 2 * shape.F).to(hidden_TD)
    errors["permute"] = _error(lambda hidden: gpu_permute.permute(hidden, found), permute_slowly, hidden_TD)
    errors["combine"] = _error(
        lambda rows, weights: gpu_permute.combine(rows, weights, found), combine_slowly, rows_ND, weights_N
    )
    errors["swiglu"] = _error(gpu_swiglu.swiglu, swiglu, hidden_N2F)
    inputs = hidden_TD, weights_N, problem.gate_up, problem.down
    errors["mix_experts"] = _error(mix, mix_slowly, *inputs)
    return errors


def _error(run: Callable[..., Tensor], oracle: Callable[..., Tensor], *inputs: Tensor) -> float:
    """Return the largest error of a result and of the gradients of its every input."""
    mine = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    theirs = [tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
    found, expected = run(*mine), oracle(*theirs)
    steepness = torch.randn(found.shape).to(found.dtype)
    gradients = zip(
        torch.autograd.grad(found, mine, steepness.to(found.device)),
        torch.autograd.grad(expected, theirs, steepness.double()),
        strict=True,
    )
    return max(relative_error(one.cpu(), other) for one, other in ((found, expected), *gradients))


def check_all(shapes: tuple[Shape, ...], device: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return every error with its tolerance, and a line for each that is too large."""
    checks, wrong = [], []
    for dtype in DTYPES:
        for shape in shapes:
            for name, error in check(shape, dtype, device).items():
                tolerance = TOLERANCES[dtype]
                checks.append({"op": name, "dtype": str(dtype), **asdict(shape), "error": error, "limit": tolerance})
                if not error <= tolerance:
                    wrong.append(f"{name} in {dtype} at {shape}: error {error:.3g} is over {tolerance:.3g}")
    return checks, wrong


def swiglu(hidden: Tensor) -> Tensor:
    """Return silu of the first half of the last dimension times its second half."""
    gate, up = hidden.chunk(2, dim=-1)
    return functional.silu(gate) * up
