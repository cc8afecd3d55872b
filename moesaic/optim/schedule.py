"""Learning rate over the steps of a run: pure functions of the step."""

import math
from collections.abc import Callable

from moesaic.config.optim import OptimConfig


def _cosine(progress: float, decay_share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float, decay_share: float) -> float:
    return 1 - progress


def _wsd(progress: float, decay_share: float) -> float:
    return min(1.0, (1 - progress) / decay_share)


def _constant(progress: float, decay_share: float) -> float:
    return 1.0


# From the share of the steps after warm-up that is done, and the share of them that decays, to the height between the
# final rate (0) and the peak (1).
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _wsd,
    "constant": _constant,
}


def learning_rate(step: int, num_steps: int, warmup_steps: int, config: OptimConfig) -> float:
    """Return the rate of a step.

    Args:
        step: 1..num_steps. The rate rises linearly to its peak at step `warmup_steps`, then follows the schedule
            and reaches `min_learning_rate` at the last step.
    """
    peak = config.learning_rate
    if step <= warmup_steps:
        return peak * step / warmup_steps
    final = peak / 10 if config.min_learning_rate is None else config.min_learning_rate
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    decay_share = _decay_after_warmup(num_steps, warmup_steps, config)
    return final + (peak - final) * SCHEDULES[config.schedule](progress, decay_share)


def _decay_after_warmup(num_steps: int, warmup_steps: int, config: OptimConfig) -> float:
    """Return which share of the steps after warm-up decays: the share of the run, or all of them where it is more."""
    return min(1.0, config.decay_share * num_steps / max(1, num_steps - warmup_steps))
