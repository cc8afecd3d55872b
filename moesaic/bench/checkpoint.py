"""`moesaic bench checkpoint`: 1 GB of training state saved and loaded by ranks, against torch.save and torch.load.

The ranks, one thread each, take turns with torch's functions in one process, which has the whole state in its memory:
what it costs to bring it there is not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from moesaic.bench.measure import describe_machine, summarise
from moesaic.bench.target import hold
from moesaic.errors import ConfigError, MoesaicError

# 83M parameters: with two moments 1 GB.
MODEL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": 8192,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 1024,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 704,
    "max_position_embeddings": 512,
}
_TOKENS = 512
_TIMEOUT_S = 1800
# What is shorter, than what, and by how much at least.
TARGETS = (
    ("torch_save", "stall", 20.0),
    ("cold_torch_load", "cold_load", 1.0),
    ("warm_torch_load", "warm_load", 1.0),
)


def bench_checkpoint(num_ranks: int, repeats: int, folder: Path | None = None) -> dict[str, Any]:
    """Measure; return the result as plain data.

    Args:
        num_ranks: processes.
        repeats: rounds.
        folder: where the files go, 2 GB of them; None: a temporary folder.

    Raises:
        ConfigError: the ranks do not divide the experts.
        MoesaicError: a rank failed, or loaded something else than was saved.
    """
    if MODEL["num_experts"] % num_ranks:
        raise ConfigError(f"--ranks {num_ranks} does not divide {MODEL['num_experts']} experts", "give 2, 4 or 8")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        answer = _ask({"folder": place, "repeats": repeats, "model": MODEL, "tokens": _TOKENS}, num_ranks, Path(place))
    seconds: dict[str, list[float]] = answer["seconds"]
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    case = {
        "name": "1 GB",
        "bytes": answer["bytes"],
        "times": {name: summarise(each) for name, each in seconds.items()},
        "report": answer["reports"][-1],
        "targets": [
            hold(f"{slow} / {fast}", "least", limit, medians[slow] / medians[fast]) for slow, fast, limit in TARGETS
        ],
    }
    machine = {**describe_machine(), "ranks": num_ranks}
    return {"benchmark": "checkpoint", "machine": machine, "repeats": repeats, "cases": [case]}


def _ask(request: dict[str, Any], num_ranks: int, folder: Path) -> dict[str, Any]:
    """Start the ranks and return what the first one answers."""
    asked, script = folder / "request.json", Path(__file__).with_name("checkpoint_worker.py")
    asked.write_text(json.dumps(request))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    # A script's own folder has a module called deepspeed: it is not to be searched.
    settings = {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [*launcher, script, asked],
        capture_output=True,
        text=True,
        env=os.environ | settings,
        timeout=_TIMEOUT_S,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and answers:
        return json.loads(answers[-1])
    told = [line for line in done.stderr.splitlines() if "Error" in line] or [f"status {done.returncode}"]
    raise MoesaicError(f"the ranks ended: {told[0].strip()}", "look whether the folder has room for 3 GB")
