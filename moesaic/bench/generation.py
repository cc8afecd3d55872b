"""One program that generates, asked through its worker: moesaic, llama.cpp or transformers, on the same weights."""

import random
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesaic.bench.random_model import save_random_model
from moesaic.bench.worker import Answer, ask_worker
from moesaic.checkpoint.folder import CONFIG
from moesaic.checkpoint.repack import repack_model
from moesaic.config.load import check_section
from moesaic.config.model import ModelConfig
from moesaic.errors import UnsupportedError
from moesaic.models.table import expand_model

# Of the tokens of prompts and answers: the same for all programs, and even, as no model of random weights would choose.
_SEED = 0
_PRESET = "olmoe-1b-7b"


@dataclass(frozen=True)
class Programs:
    """Where the programs and their weights are.

    Attributes:
        folder: the Hugging Face folder, for moesaic and transformers.
        gguf: the same weights for llama.cpp.
        peers: the environment that has llama.cpp.
        offload: a folder that transformers may fill.
        vocabulary: token ids are below this.
        threads: that each computes with.
    """

    folder: Path
    gguf: Path
    peers: Path
    offload: Path
    vocabulary: int
    threads: int

    def ask(
        self,
        name: str,
        prompt_tokens: int,
        new_tokens: int,
        sequences: int = 1,
        limit_bytes: int | None = None,
        bits: int | None = None,
        **changes: Any,
    ) -> Answer:
        """Run a program once, from cold files.

        Args:
            name: 'moesaic', 'llama' or 'transformers'.
            prompt_tokens, new_tokens, sequences: the work.
            limit_bytes: of memory, page cache included; None: none.
            bits: of moesaic's weights, 8 or 4, which are written first if they never were; None: as they are.
            changes: of the request, such as memory=2**32 for moesaic.

        Raises:
            MoesaicError: it cannot do it, or not within the memory.
        """
        generator = random.Random(_SEED)

        def draw(count: int) -> list[list[int]]:
            return [[generator.randrange(self.vocabulary) for _ in range(count)] for _ in range(sequences)]

        request: dict[str, Any] = {
            "prompts": draw(prompt_tokens),
            "next": draw(new_tokens),
            "new_tokens": new_tokens,
            "threads": self.threads,
            "rounds": 1,
            "logits": None,
            **self._own(name, limit_bytes),
            **({} if bits is None else {"model": str(self._round(bits))}),
            **changes,
        }
        if name == "llama" and not self.gguf.is_file():
            raise UnsupportedError(f"there is no '{self.gguf}' for llama.cpp", "make peers")
        python = self.peers / "bin" / "python" if name == "llama" else Path(sys.executable)
        cold = [self.gguf if name == "llama" else Path(request["model"])]
        return ask_worker(python, name, request, limit_bytes, cold, timeout_s=1800)

    def _round(self, bits: int) -> Path:
        folder = self.folder.with_name(f"{self.folder.name}-int{bits}")
        if not folder.exists():
            repack_model(self.folder, folder, bits, core_bits=8)
        return folder

    def _own(self, name: str, limit_bytes: int | None) -> Mapping[str, Any]:
        if name == "llama":
            return {"model": str(self.gguf), "mmap": limit_bytes is not None}
        if name == "transformers":
            # What it may hold of the weights; the rest of the limit is its own and the page cache's.
            offload = {"cpu_bytes": (limit_bytes or 0) // 2, "folder": str(self.offload)}
            return {"model": str(self.folder), "offload": None if limit_bytes is None else offload}
        return {
            "model": str(self.folder),
            "memory": limit_bytes,
            "resident": None,
            "policy": "decayed",
            "trace": None,
        }


def rates_of(answer: Answer) -> dict[str, float | None]:
    """Return the seconds of the prompt's pass, the median and the mean of the following ones, and tokens a second.

    Of the following ones: None where there was none.
    """
    values = answer.values
    prefill_s = round(statistics.median(values["prefill_s"]), 4)
    steps = [step for each in values["steps_s"] for step in each]
    if not steps:
        return {"prefill_s": prefill_s, "step_s": None, "mean_step_s": None, "tokens_per_s": None}
    mean_s = statistics.fmean(steps)
    return {
        "prefill_s": prefill_s,
        "step_s": round(statistics.median(steps), 4),
        "mean_step_s": round(mean_s, 4),
        "tokens_per_s": round(len(values["tokens"]) / mean_s, 3),
    }


def make_programs(cache: Path, peers: Path, report: Callable[[int, int], object]) -> Programs:
    """Make the model of the published OLMoE-1B-7B's sizes, and its copy for llama.cpp, where they are not there yet.

    Args:
        cache: a folder with 28 GB of room.
        peers: the environment that has llama.cpp; without it there is no copy.
        report: is told the files done and all of them.

    Raises:
        MoesaicError: they cannot be made.
    """
    config = check_section(ModelConfig, expand_model({"preset": _PRESET}), _PRESET)
    folder, gguf = cache / _PRESET, cache / f"{_PRESET}.gguf"
    if not (folder / CONFIG).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        save_random_model(config, folder, report=report)
    if not gguf.is_file() and (peers / "llama.done").is_file():
        ask_worker(peers / "bin" / "python", "gguf", {"folder": str(folder), "file": str(gguf)})
    threads = torch.get_num_threads()
    return Programs(folder, gguf, peers, cache / "offload", config.vocab_size, threads)
