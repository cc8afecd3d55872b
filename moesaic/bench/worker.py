"""A peer asked once, in a process of its own: another environment, and a memory limit where one is wanted."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.bench.limited import drop_cached, run_limited
from moesaic.errors import MemoryBudgetError, MoesaicError
from moesaic.units import format_bytes


@dataclass(frozen=True)
class Answer:
    """What a worker told.

    Attributes:
        values: its JSON object.
        peak_bytes: the most memory that it held, page cache included; None: it ran without a limit.
    """

    values: dict[str, Any]
    peak_bytes: int | None


def ask_worker(
    python: Path,
    peer: str,
    request: Mapping[str, Any],
    limit_bytes: int | None = None,
    cold: Sequence[Path] = (),
    timeout_s: float | None = None,
) -> Answer:
    """Run the script of a peer to its end.

    Args:
        python: the interpreter of its environment.
        peer: 'llama', 'transformers' or 'gguf': the script's docstring tells what it takes and gives.
        request: what it takes.
        limit_bytes: of its memory, page cache included; None: none.
        cold: files and folders that are dropped from the page cache before.
        timeout_s: after so long it is killed.

    Raises:
        MemoryBudgetError: the limit was too little for it.
        UnsupportedError: memory cannot be limited here.
        MoesaicError: it failed, or took too long.
    """
    command: list[str | Path] = [python, "-P", Path(__file__).with_name(f"{peer}_worker.py")]
    text = json.dumps(request)
    if limit_bytes is None:
        drop_cached(cold)
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise MoesaicError(f"the process of {peer} took longer than {timeout_s:g} s", "give it more time") from None
        return Answer(_read(peer, done.returncode, done.stdout, done.stderr), None)
    run = run_limited(command, limit_bytes, text, cold, timeout_s)
    if run.was_killed:
        raise MemoryBudgetError(f"{peer} needs more memory than {format_bytes(limit_bytes)}", "raise the limit")
    return Answer(_read(peer, run.returncode, run.output, run.errors), run.peak_bytes)


def _read(peer: str, returncode: int, output: str, errors: str) -> dict[str, Any]:
    lines = [line for line in output.splitlines() if line.strip()]
    if returncode == 0 and lines:
        return json.loads(lines[-1])
    last = ([line for line in errors.splitlines() if line.strip()] or [f"it said nothing (status {returncode})"])[-1]
    raise MoesaicError(f"the process of {peer} ended: {last}", "where a package is missing: make peers")
