"""What training asks of each kind of memory: the three inequalities of SE-MoE, before anything is built.

| symbol | meaning |
| --- | --- |
| D, S | parameters of the dense core, and of all routed experts |
| L | layers with experts |
| a | share of the experts that a pass touches |
| b | bytes of training state a parameter: weight, gradient, moments; Adam's is 16 |
| N | machines, over which everything is shared out |

| tier | holds | limit |
| --- | --- | --- |
| device | state of the dense core; weights and gradients of what one layer touches | b D + 4 a S / L <= M_device N |
| memory | state of the experts that are touched | b a S <= M_memory N |
| disk | state of all experts but gradients and low-precision weights, 4 bytes | (b - 4) S <= M_disk N |

Where processors compute, memory is the device too, and has to hold both.

Source: Shen et al. (2022), SE-MoE, section 3.2.1, with b = 16; D and S here are parameters, M bytes of one machine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Of weight and gradient in low precision: what computing takes, and what need not be kept.
_ACTIVE_BYTES = 4


@dataclass(frozen=True)
class TrainingSizes:
    """A model in training.

    Attributes:
        dense, sparse: D and S.
        num_layers: L; 0 without experts.
        touched: a, above 0, at most 1.
        state_bytes: b.
    """

    dense: int
    sparse: int
    num_layers: int
    touched: float
    state_bytes: int = 16


@dataclass(frozen=True)
class Machine:
    """Bytes that one machine gives to a run.

    Attributes:
        memory, disk: M_memory and M_disk.
        device: M_device; None: processors compute, in `memory`.
    """

    memory: int
    disk: int
    device: int | None = None

    @property
    def tiers(self) -> dict[str, int]:
        """Return the bytes of each tier."""
        return ({} if self.device is None else {"device": self.device}) | {"memory": self.memory, "disk": self.disk}


def plan_tiers(sizes: TrainingSizes, machine: Machine) -> dict[str, int]:
    """Return the bytes that each tier has to hold, over all machines."""
    sparse, layers = sizes.sparse, max(1, sizes.num_layers)
    computing = sizes.state_bytes * sizes.dense + _ACTIVE_BYTES * sizes.touched * sparse / layers
    caching = sizes.state_bytes * sizes.touched * sparse
    storing = (sizes.state_bytes - _ACTIVE_BYTES) * sparse
    needs: Mapping[str, float] = {"device": computing, "memory": caching, "disk": storing}
    if machine.device is None:
        needs = {"memory": computing + caching, "disk": storing}
    return {tier: math.ceil(num_bytes) for tier, num_bytes in needs.items()}


def count_machines(sizes: TrainingSizes, machine: Machine) -> int:
    """Return the fewest machines that hold the model: the least N that meets every limit."""
    needs = plan_tiers(sizes, machine)
    return max(1, *(-(-needs[tier] // capacity) for tier, capacity in machine.tiers.items()))


def count_largest_sparse(sizes: TrainingSizes, machine: Machine, num_machines: int = 1) -> int:
    """Return the most expert parameters that so many machines hold beside this dense core: the greatest S; at least 0.

        min(L (M_device N - b D) / (4 a), M_memory N / (b a), M_disk N / (b - 4))

    and where memory is the device, (M_memory N - b D) / (4 a / L + b a) in place of the first two.
    """
    dense = sizes.state_bytes * sizes.dense
    layer = _ACTIVE_BYTES * sizes.touched / max(1, sizes.num_layers)
    cache = sizes.state_bytes * sizes.touched
    total = {tier: capacity * num_machines for tier, capacity in machine.tiers.items()}
    limits = [total["disk"] / (sizes.state_bytes - _ACTIVE_BYTES)]
    if machine.device is None:
        limits.append((total["memory"] - dense) / (layer + cache))
    else:
        limits += [(total["device"] - dense) / layer, total["memory"] / cache]
    return max(0, math.floor(min(limits)))
