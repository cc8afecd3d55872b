"""moesaic in a process of its own, whose memory can be limited: a script, as `llama_worker.py` is one.

It reads one JSON object from standard input and answers with one:

    {"model": FOLDER, "prompts": [[ID, ...], ...], "new_tokens": N, "rounds": N, "threads": N,
     "memory": BYTES or null, "resident": SHARE or null, "policy": NAME, "trace": FILE or "even" or null,
     "next": [[ID, ...], ...] or null, "logits": FILE or null}
    {"version": ..., "load_s": ..., "prefill_s": [...], "steps_s": [[...], ...], "tokens": [[ID, ...], ...],
     "stats": [...], "sizes": {...}, "disk_gb_per_s": [...], "memory_gb_per_s": ...}

`resident` asks for as much memory as holds this share of the experts, in place of `memory`. With a `trace` each token
takes the experts of a line of it, in turn, whatever its router says; with "even", experts that are drawn. `next` holds
the tokens that follow each prompt, the model's own where it is null: a model of random weights repeats itself, and so
would the experts it needs. `stats` are those before the first round, then after the first and the last pass of each.
`sizes` are those of `ModelSizes`. The disk is measured before the first round and after each.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import moesaic
from moesaic.bench.replayed import replay_routing
from moesaic.checkpoint.lay_out import lay_out_pages
from moesaic.checkpoint.paged import PagedModel, open_paged_model
from moesaic.checkpoint.stored import StoredModel, open_model
from moesaic.hw.memory import limit_bytes
from moesaic.infer.plan import ANSWER_TOKENS, size_model
from moesaic.infer.request import SamplingParams
from moesaic.infer.runner import Runner
from moesaic.infer.sequence import Sequence
from moesaic.memory.disk import Disk
from moesaic.memory.probe import measure_disk_rate
from moesaic.ops.cpu.bandwidth import read_bandwidth

_PROBE_BYTES = 2**29
# A disk may be twice as fast for a second as for the next one.
_PROBE_SECONDS = 3.0
# That a probe takes beside the model.
_PROBE_ROOM = 2**26


def main() -> None:
    """Generate as asked."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    folder = Path(request["model"])
    stored = open_model(folder)
    memory_rate = read_bandwidth(_PROBE_BYTES)
    disk_rates = [_disk_rate(stored)]
    # An answer longer than is reckoned with would take slots from the pages.
    tokens = len(request["prompts"][0]) + max(0, request["new_tokens"] - ANSWER_TOKENS)
    sizes = size_model(stored, stored.dtype, tokens)
    budget = request["memory"]
    if budget is not None:
        budget = min(budget, limit_bytes()) - _PROBE_ROOM
    if request["resident"] is not None:
        budget = sizes.budget_for(round(request["resident"] * sizes.num_pages))
    began = time.perf_counter()
    paged = open_paged_model(folder, None, budget, request["policy"])
    answer: dict[str, Any] = {
        "version": moesaic.__version__,
        "load_s": time.perf_counter() - began,
        "prefill_s": [],
        "steps_s": [],
        "stats": [paged.stats()],
    }
    with replay_routing(paged.model, request["trace"]):
        for number in range(request["rounds"]):
            times, logits, stats = _generate(paged, request)
            answer["prefill_s"].append(times[0])
            answer["steps_s"].append(times[1:])
            answer["stats"] += stats
            if number == 0:
                answer["tokens"] = logits.argmax(2).T.tolist()
                if request["logits"] is not None:
                    np.save(request["logits"], logits.numpy())
            disk_rates.append(_disk_rate(stored))
    paged.disk.close()
    answer |= {
        "sizes": {
            **asdict(sizes),
            "memory_bytes_per_token": sizes.memory_bytes_per_token,
            "disk_bytes_per_token": sizes.disk_bytes_per_token,
        },
        "disk_gb_per_s": [rate / 1e9 for rate in disk_rates],
        "memory_gb_per_s": memory_rate / 1e9,
    }
    print(json.dumps(answer))


def _generate(paged: PagedModel, request: dict[str, Any]) -> tuple[list[float], Tensor, list[dict[str, Any]]]:
    """Return each pass's seconds, the prompts' first, logits [N, B, V], and the counts after the first and the last."""
    prompts, count = request["prompts"], request["new_tokens"]
    params = SamplingParams(max_tokens=count, ignore_eos=True)
    sequences = [Sequence(index, ids, params, count, set(), None) for index, ids in enumerate(prompts)]
    times, logits, stats = [], [], []
    with Runner(paged.model, sequences, paged.make_room(), paged.pager) as runner:
        for number in range(count):
            began = time.perf_counter()
            logits_BV = runner.decode(sequences) if number else runner.prefill(sequences)
            times.append(time.perf_counter() - began)
            for sequence, logits_V in zip(sequences, logits_BV, strict=True):
                given = request["next"]
                sequence.accept(sequence.choose(logits_V) if given is None else given[sequence.index][number])
            logits.append(logits_BV.float())
            if number in (0, count - 1):
                stats.append(paged.stats())
    return times, torch.stack(logits), [stats[0], stats[-1]]


def _disk_rate(stored: StoredModel) -> float:
    layout, pages = lay_out_pages(stored, stored.dtype)
    disk = Disk()
    try:
        return measure_disk_rate([page for each in pages.values() for page in each], layout, disk, _PROBE_SECONDS)
    finally:
        disk.close()


if __name__ == "__main__":
    main()
