"""Gradients that are sums over ranks: fused in buckets, each on its way as soon as it is full.

The gradients of a bucket are views of one buffer, each at a multiple of 256 bytes from its beginning. Backward adds to
them in place, and the buffer is summed as one message: nothing is copied. Buckets leave in the order in which backward
fills them, from the last layer on, so all ranks send the same ones in the same order.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moesaic.comm.collective import all_reduce
from moesaic.parallel.part import local_part, num_copies

_ALIGNED_BYTES = 256


class Gradients(Protocol):
    """The gradients of a step, of which this process computes its part."""

    def clear(self) -> None:
        """Begin a step."""
        ...

    def expect_last(self) -> None:
        """Say that the coming backward is the last of the step: what it completes may be sent."""
        ...

    def complete(self) -> None:
        """Wait until the gradients are those of the whole batch."""
        ...

    def clip(self, max_norm: float) -> float:
        """Scale all gradients down to a norm, and return what it was; each parameter counts once."""
        ...


class LocalGradients:
    """A model that is computed by one process."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def clear(self) -> None:
        """Let the gradients go."""
        self._model.zero_grad(set_to_none=True)

    def expect_last(self) -> None:
        """Do nothing: there is nobody to send to."""

    def complete(self) -> None:
        """Do nothing: they are complete."""

    def clip(self, max_norm: float) -> float:
        """Scale all gradients down to a norm, and return what it was."""
        return float(torch.nn.utils.clip_grad_norm_(self._model.parameters(), max_norm))


class Bucket:
    """The gradients of a few parameters, summed over a group as one message."""

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
        self.parameters = parameters
        self._group = group
        sizes = [_aligned_elements(local_part(parameter)) for parameter in parameters]
        first = local_part(parameters[0])
        self._buffer = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self._views = [
            _like(parameter, flat[: local_part(parameter).numel()])
            for parameter, flat in zip(parameters, self._buffer.split(sizes), strict=True)
        ]
        self._work: dist.Work | None = None

    @property
    def num_bytes(self) -> int:
        """Return the length of the message."""
        return self._buffer.nbytes

    def clear(self) -> None:
        """Set the gradients to zero."""
        self._buffer.zero_()
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view

    def send(self) -> None:
        """Begin to sum."""
        self._work = all_reduce(self._buffer, self._group, async_op=True)

    def wait(self) -> None:
        """Wait until the sum is there."""
        assert self._work is not None, "only what was sent arrives"
        self._work.wait()
        self._work = None


def build_buckets(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, num_bytes: int) -> list[Bucket]:
    """Group parameters, the last first, into buckets of one dtype each and at least so many bytes, but for the last."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        if room <= 0 or groups[-1][0].dtype != parameter.dtype:
            groups.append([])
            room = num_bytes
        groups[-1].append(parameter)
        room -= _aligned_elements(local_part(parameter)) * parameter.element_size()
    return [Bucket(each, group) for each in groups]


class SharedGradients:
    """A model that ranks compute together.

    Args:
        model: whose parameters have their gradients.
        buckets: of the parameters whose gradients are sums over ranks, in the order in which backward fills them.
        group: all ranks.
    """

    def __init__(self, model: nn.Module, buckets: Sequence[Bucket], group: dist.ProcessGroup) -> None:
        # As they are now: after an evaluation, FSDP shows gathered ones, which have no gradients, in their place.
        self._parameters = list(model.parameters())
        self._buckets = buckets
        self._group = group
        self._is_last = False
        self._missing: list[int] = []
        self._num_sent = 0
        for index, bucket in enumerate(buckets):
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._arrived(index))

    def clear(self) -> None:
        """Begin with zeros where ranks add up, without gradients elsewhere."""
        for parameter in self._parameters:
            parameter.grad = None
        for bucket in self._buckets:
            bucket.clear()

    def expect_last(self) -> None:
        """Send each bucket as soon as the coming backward has filled it."""
        self._is_last = True
        self._num_sent = 0
        self._missing = [len(bucket.parameters) for bucket in self._buckets]

    def complete(self) -> None:
        """Wait until every gradient is the sum over ranks."""
        self._is_last = False
        for bucket in self._buckets[self._num_sent :]:  # a parameter that took no part has no gradient
            bucket.send()
        for bucket in self._buckets:
            bucket.wait()

    def norm(self) -> float:
        """Return the norm of all gradients, each of them counted once."""
        squares = torch.zeros((), dtype=torch.float64)
        for parameter in self._parameters:
            if parameter.grad is not None:
                part = torch.linalg.vector_norm(local_part(parameter.grad)).double()
                squares += part.square().cpu() / num_copies(parameter, self._group.size())
        all_reduce(squares, self._group)
        return math.sqrt(squares)

    def clip(self, max_norm: float) -> float:
        """Scale all gradients down to a norm, and return what it was."""
        norm = self.norm()
        if norm > max_norm:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    local_part(parameter.grad).mul_(max_norm / (norm + 1e-6))
        return norm

    def _arrived(self, index: int) -> None:
        if not self._is_last:
            return
        self._missing[index] -= 1
        while self._num_sent < len(self._buckets) and self._missing[self._num_sent] == 0:
            self._buckets[self._num_sent].send()
            self._num_sent += 1


def _aligned_elements(tensor: Tensor) -> int:
    per_line = _ALIGNED_BYTES // tensor.element_size()
    return -(-tensor.numel() // per_line) * per_line


def _like(parameter: nn.Parameter, flat: Tensor) -> Any:
    """Return a gradient of the parameter's kind whose memory is `flat`."""
    view = flat.view(local_part(parameter).shape)
    if not isinstance(parameter, DTensor):
        return view
    return DTensor.from_local(view, parameter.device_mesh, parameter.placements, run_check=False)
