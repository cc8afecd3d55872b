"""One line of metrics.jsonl."""

from typing import Any

from moesaic.nn.moe.load import ExpertLoad
from moesaic.train.state import TrainState
from moesaic.train.step import StepResult

# The load of every expert is written this many times a run: enough for a picture, little enough for a long run.
_LOADS_A_RUN = 200


def metrics_row(state: TrainState, result: StepResult, step_seconds: float, num_steps: int) -> dict[str, Any]:
    """Return the metrics of a step: losses in nats a token, times in seconds, loads as shares that sum to one.

    Messages and bytes are those of the first process.
    """
    row: dict[str, Any] = {
        "step": state.step,
        "loss": result.loss,
        "tokens_per_s": result.num_tokens / step_seconds,
        "learning_rate": result.learning_rate,
        "grad_norm": result.grad_norm,
        "seconds": state.seconds,
        "tokens": state.tokens,
    }
    row |= result.traffic
    loads = list(result.loads.values())
    if loads:
        row |= result.losses
        row |= {
            "max_violation": _mean([load.max_violation for load in loads]),
            "load_entropy": _mean([load.entropy for load in loads]),
            "dead_experts": sum(load.dead_experts for load in loads),
            "dropped_share": _mean([load.dropped_share for load in loads]),
        }
        if state.step % max(1, num_steps // _LOADS_A_RUN) == 0 or state.step in (1, num_steps):
            row["expert_load"] = {"layers": {str(layer): _shares(load) for layer, load in result.loads.items()}}
    return row


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _shares(load: ExpertLoad) -> list[float]:
    return [round(share, 6) for share in load.shares_E.tolist()]
