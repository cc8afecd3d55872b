"""What a run leaves: the exported model, the final figures, the report."""

import json
from typing import Any

from moesaic.checkpoint.export import export_tensors
from moesaic.checkpoint.load import DTYPES
from moesaic.config.run import RunConfig
from moesaic.data.baseline import bigram_loss, unigram_loss
from moesaic.data.prepare import PreparedData
from moesaic.flush import replace_text
from moesaic.parallel.part import whole
from moesaic.telemetry.metrics import read_metrics
from moesaic.telemetry.report import write_report
from moesaic.train.evaluate import held_out_batches
from moesaic.train.run_folder import RunFolder
from moesaic.train.state import TrainState

# Beyond this, counting word pairs for the baselines of the report takes too long.
_BASELINE_TOKENS = 20_000_000


def finish(
    state: TrainState, config: RunConfig, folder: RunFolder, prepared: PreparedData
) -> tuple[bool, dict[str, Any]]:
    """Export the model and write summary.json and report.html, in the first process; all must call.

    Returns:
        Whether transformers can load the model, and the figures in summary.json.
    """
    parameters = ((name, whole(tensor)) for name, tensor in state.model.state_dict().items())
    if not state.world.is_first:
        for _ in parameters:
            pass
        return False, {}
    known = export_tensors(
        config.model, parameters, DTYPES[str(config.train.precision)], folder.model, folder.tokenizer
    )
    total, active = state.model.num_parameters()
    summary: dict[str, Any] = {
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "held_out_loss": state.held_out_loss,
        "parameters": total,
        "active_parameters": active,
        "baselines": {},
    }
    batches = held_out_batches(state.loader, config.train)
    if batches and prepared.num_train_tokens <= _BASELINE_TOKENS:
        summary["baselines"] = {
            "unigram": unigram_loss(prepared, batches),
            "bigram": bigram_loss(prepared, batches),
        }
    replace_text(folder.path / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_run_report(folder, config, summary)
    return known, summary


def write_run_report(folder: RunFolder, config: RunConfig, summary: dict[str, Any]) -> None:
    """Write report.html from the metrics of a run."""
    rows = read_metrics(folder.metrics)
    write_report(folder.path.name, rows, config.model_dump(mode="json"), summary, folder.report)
