"""Settings of every test: the same random numbers each time, a fair share of the cores, no network, no chatter."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.comm.pool import Pool, Pools
from tests.train.tiny_run import write_text

# Read by huggingface_hub and transformers when they are first imported, which some tests do.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

settings.register_profile("moesaic", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("moesaic")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start each test from the same state of torch's generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of made-up words that tiny runs learn; the cache of its tokens lies beside it."""
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """A function from a number to as many ranks, which have met."""
    made: dict[int, Pool] = {}

    def get(size: int) -> Pool:
        if size not in made:
            made[size] = Pool(size)
        return made[size]

    yield get
    for pool in made.values():
        pool.close()
