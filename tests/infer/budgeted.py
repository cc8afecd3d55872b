"""Generates within a budget and prints what it held: a program of its own for `test_budget.py`.

python -m tests.infer.budgeted FOLDER BUDGET
"""

import json
import sys
import threading
import time

from moesaic.hw.memory import held_bytes
from moesaic.infer.engine import LLM


def main(folder: str, budget: int) -> None:
    """Look at what is held every few milliseconds while prompts of several lengths are answered."""
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, held_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    llm = LLM(folder, memory=budget)
    prompts = [[(7 * index + length) % 500 for index in range(length)] for length in (300, 3, 40)]
    token_ids = [completion.token_ids for completion in llm.generate(prompts, max_tokens=8, ignore_eos=True)]
    token_ids += [llm.generate(prompts[1], max_tokens=20, ignore_eos=True)[0].token_ids]
    ended.set()
    watcher.join()
    print(json.dumps({"most": most, "tokens": token_ids, "stats": llm.stats()}))
    llm.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
