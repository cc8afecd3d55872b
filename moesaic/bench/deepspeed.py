"""The peer in another environment: DeepSpeed-MoE, asked step by step, so that it takes turns with the others."""

import json
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moesaic.bench.shape import Shape
from moesaic.bench.workload import Inputs, Layer
from moesaic.errors import MoesaicError

CAPACITY_FACTOR = 1.25
_MIN_CAPACITY = 8  # as DeepSpeed's gate has it
NOT_MEASURED = "not measured: run make peers"
_WORKER = Path(__file__).with_name("deepspeed_worker.py")
# As `keep_freed_memory` sets it in this process.
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


class DeepSpeedPeer:
    """A process that holds one layer of DeepSpeed-MoE and runs it when told to.

    Args:
        environment: the folder of a virtual environment with torch, safetensors and DeepSpeed.

    Raises:
        MoesaicError: the process does not start, or ends while it is asked.
    """

    def __init__(self, environment: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "log").open("w+")
        settings = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(torch.get_num_threads()), **_KEEP_FREED_MEMORY}
        self._process = subprocess.Popen(
            [environment.absolute() / "bin" / "python", "-P", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | settings,
            cwd=self._folder.name,
        )
        self.version = str(self._answer()["deepspeed"])

    def load(self, layer: Layer, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Take over weights and tokens; return the result and the gradient of the tokens with nothing dropped."""
        given, found = Path(self._folder.name) / "given", Path(self._folder.name) / "found"
        tensors = {
            "gate_up": layer.gate_up.detach(),
            "down": layer.down.detach(),
            "hidden": inputs.hidden_TD.detach(),
            "expert_ids": inputs.expert_ids_TK,
            "weights": inputs.weights_TK.detach(),
            "grad": inputs.grad_TD,
        }
        save_file(tensors, given)
        chosen = inputs.expert_ids_TK.shape[1]
        self._ask({"load": str(given), "k": chosen, "capacity_factor": CAPACITY_FACTOR, "save": str(found)})
        results = load_file(found)
        given.unlink()
        return results["result"], results["grad_hidden"]

    def step(self) -> None:
        """Run forward and backward once, with a capacity of 1.25 times the mean load; rows beyond it are dropped."""
        self._ask({"step": True})

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
        self._folder.cleanup()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None, "opened as a pipe"
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "opened as a pipe"
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._log.seek(0)
        last = ([text for text in self._log.read().splitlines() if text.strip()] or ["it said nothing"])[-1]
        self.close()
        raise MoesaicError(f"the process of DeepSpeed ended: {last}", "make its environment again: make peers")


def find_peer(environment: Path) -> DeepSpeedPeer | None:
    """Start the peer where its environment has been made."""
    return DeepSpeedPeer(environment) if (environment / "bin" / "python").exists() else None


def share_within_capacity(inputs: Inputs, shape: Shape) -> float:
    """Return how much of the work DeepSpeed does: the share of the pairs that find room."""
    capacity = max(_MIN_CAPACITY, math.ceil(CAPACITY_FACTOR * shape.chosen * shape.tokens / shape.experts))
    counts_E = inputs.expert_ids_TK.flatten().bincount(minlength=shape.experts)
    return float(counts_E.clamp_max(capacity).sum() / counts_E.sum())
