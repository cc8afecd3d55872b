"""transformers in a process of its own, whose memory can be limited: a script, which needs no moesaic.

It reads one JSON object from standard input and answers with one, as `llama_worker.py` does:

    {"model": HUGGING FACE FOLDER, "prompts": [[ID, ...], ...], "new_tokens": N, "threads": N, "rounds": N,
     "next": [[ID, ...], ...] or null, "offload": {"cpu_bytes": N, "folder": FOLDER} or null, "logits": FILE or null}

With `offload` accelerate keeps as many weights in memory as fit `cpu_bytes`, and reads the others from disk each time.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor


def load(request: dict[str, Any]) -> Any:
    """Load the model in bfloat16, its experts computed with `grouped_mm`."""
    options: dict[str, Any] = {"dtype": torch.bfloat16, "experts_implementation": "grouped_mm"}
    if (offload := request["offload"]) is not None:
        options |= {
            "device_map": "auto",
            "max_memory": {"cpu": offload["cpu_bytes"]},
            "offload_folder": offload["folder"],
        }
    return transformers.AutoModelForCausalLM.from_pretrained(request["model"], **options).eval()


def generate(model: Any, request: dict[str, Any]) -> tuple[list[float], Tensor]:
    """Return the seconds of each pass, the prompts' first, and the logits [N, B, V]."""
    ids_BS, cache = torch.tensor(request["prompts"]), None
    times, logits = [], []
    for number in range(request["new_tokens"]):
        began = time.perf_counter()
        output = model(ids_BS, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits_BV, cache = output.logits[:, -1], output.past_key_values
        ids_BS = logits_BV.argmax(1, keepdim=True)
        times.append(time.perf_counter() - began)
        if request["next"] is not None:
            ids_BS = torch.tensor(request["next"])[:, number : number + 1]
        logits.append(logits_BV.float())
    return times, torch.stack(logits)


@torch.inference_mode()
def main() -> None:
    """Generate as asked."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    began = time.perf_counter()
    model = load(request)
    load_s = time.perf_counter() - began
    rounds = [generate(model, request) for _ in range(request["rounds"])]
    first = rounds[0][1]
    if request["logits"] is not None:
        np.save(request["logits"], first.numpy())
    answer = {
        "version": transformers.__version__,
        "load_s": load_s,
        "prefill_s": [times[0] for times, _ in rounds],
        "steps_s": [times[1:] for times, _ in rounds],
        "tokens": first.argmax(2).T.tolist(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
