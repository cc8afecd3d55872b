"""llama.cpp in a process of its own: a script, run by the Python of another environment, which has no moesaic.

It reads one JSON object from standard input and answers with one:

    {"model": GGUF FILE, "prompts": [[ID, ...], ...], "new_tokens": N, "threads": N, "rounds": N, "mmap": true or false,
     "next": [[ID, ...], ...] or null, "logits": FILE or null}
    {"version": ..., "load_s": ..., "prefill_s": [...], "steps_s": [[...], ...], "tokens": [[ID, ...], ...]}

The prompts, all of one length, are the sequences of a batch. A round starts from an empty cache: `prefill_s` is the
time until the first token of each sequence, `steps_s` holds those of the further N - 1. `next` holds what follows each
prompt; where it is null, the likeliest tokens do. These are told in any case, and `logits` of the first round saved as
an array [N, B, V]. Without `mmap` all weights are read at the start.
"""

import json
import sys
import time
from typing import Any

import llama_cpp
import numpy as np

_ERROR = 4  # of ggml's levels; below it tells every tensor


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _: object) -> None:
    if level == _ERROR:
        sys.stderr.write(text.decode())


class Generator:
    """A model and a context with room for the prompts and what follows them."""

    def __init__(self, request: dict[str, Any]) -> None:
        llama_cpp.llama_log_set(_log, None)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP if request["mmap"] else llama_cpp.LLAMA_LOAD_MODE_NONE
        self.model = llama_cpp.llama_model_load_from_file(request["model"].encode(), settings)
        if not self.model:
            sys.exit(f"llama.cpp cannot load '{request['model']}'")
        self.sequences, self.length = len(request["prompts"]), len(request["prompts"][0])
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = self.sequences * (self.length + request["new_tokens"])
        context.n_seq_max = self.sequences
        # One pass over all prompts reads each weight once.
        context.n_batch = context.n_ubatch = self.sequences * self.length
        context.n_threads = context.n_threads_batch = request["threads"]
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            sys.exit("llama.cpp cannot make a context")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(self.sequences * self.length, 0, 1)

    def clear(self) -> None:
        """Forget all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def forward(self, tokens: list[list[int]], start: int) -> np.ndarray:
        """Return the logits [B, V] after the last of some tokens of each sequence, the first at position `start`."""
        batch, ends = self.batch, []
        batch.n_tokens = 0
        for sequence, row in enumerate(tokens):
            for offset, token in enumerate(row):
                slot = batch.n_tokens
                batch.token[slot], batch.pos[slot] = token, start + offset
                batch.n_seq_id[slot], batch.seq_id[slot][0] = 1, sequence
                batch.logits[slot] = offset == len(row) - 1
                batch.n_tokens += 1
            ends.append(batch.n_tokens - 1)
        if status := llama_cpp.llama_decode(self.context, batch):
            sys.exit(f"llama_decode gave {status}")
        rows = [llama_cpp.llama_get_logits_ith(self.context, end) for end in ends]
        return np.stack([np.ctypeslib.as_array(row, shape=(self.vocabulary,)) for row in rows])


def main() -> None:
    """Generate as asked."""
    request = json.load(sys.stdin)
    began = time.perf_counter()
    generator = Generator(request)
    answer: dict[str, Any] = {
        "version": llama_cpp.__version__,
        "load_s": time.perf_counter() - began,
        "prefill_s": [],
        "steps_s": [],
    }
    for number in range(request["rounds"]):
        generator.clear()
        next_tokens, start = request["prompts"], 0
        times, logits = [], []
        for _ in range(request["new_tokens"]):
            began = time.perf_counter()
            logits_BV = generator.forward(next_tokens, start)
            times.append(time.perf_counter() - began)
            start += len(next_tokens[0])
            next_tokens = logits_BV.argmax(1, keepdims=True).tolist()
            if request["next"] is not None:
                next_tokens = [row[len(times) - 1 : len(times)] for row in request["next"]]
            logits.append(logits_BV)
        answer["prefill_s"].append(times[0])
        answer["steps_s"].append(times[1:])
        if number == 0:
            answer["tokens"] = np.stack(logits, 1).argmax(2).tolist()
            if request["logits"] is not None:
                np.save(request["logits"], np.stack(logits))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
