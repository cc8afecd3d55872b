"""Lion (Chen et al., 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Lion(torch.optim.Optimizer):
    """Move by the sign of an average of gradients; one moment per parameter.

        p <- p - lr * (sign(b1 m + (1 - b1) g) + decay * p)
        m <- b2 m + (1 - b2) g

    Every entry moves by the learning rate, so it wants a rate three to ten times smaller than AdamW's, and a decay as
    much larger.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        assert closure is None, "Lion evaluates no closure"
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._step_group(params, [self._moment(param) for param in params], group)

    def _moment(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(param)
        return state["exp_avg"]

    def _step_group(self, params: list[Tensor], moments: list[Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        grads = [_own(param.grad) for param in params if param.grad is not None]
        params, moments = [_own(param) for param in params], [_own(moment) for moment in moments]
        directions = torch._foreach_lerp(grads, moments, first)
        torch._foreach_sign_(directions)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, directions, alpha=-group["lr"])
        torch._foreach_lerp_(moments, grads, 1 - second)


def _own(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor: every entry moves by itself, and torch 2.11 knows no lerp of parts."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
