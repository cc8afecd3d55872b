"""A disk that fills up stops a run and spoils nothing: the limit on a file's size plays the full disk."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moesaic.checkpoint.store import CheckpointStore, Snapshot
from moesaic.errors import CheckpointError
from moesaic.train.run import train
from tests.checkpoint.stored import read_checkpoint
from tests.train.conftest import Recipe
from tests.train.tiny_run import read_course


@contextmanager
def _files_limited_to(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def saved(recipe: Recipe) -> Path:
    """The folder of a run of four steps."""
    return train(recipe({"train.steps": 4})).folder.path


@pytest.mark.parametrize("num_bytes", [0, 100_000, 250_000], ids=["nothing", "half_the_weights", "half_the_moments"])
def test_earlier_checkpoint_stays_whole_when_the_disk_takes(num_bytes: int, recipe: Recipe, saved: Path) -> None:
    whole = train(recipe({"train.steps": 6}, out="whole"), resume=str(saved / "checkpoints" / "step-00000004"))
    store = CheckpointStore(saved / "checkpoints", 2, True)
    later = Snapshot({"step": 5}, read_checkpoint(saved / "checkpoints" / "step-00000004"))
    with (
        _files_limited_to(num_bytes),
        pytest.raises(CheckpointError, match=r"cannot write .*step-00000005") as raised,
    ):
        store.save(later)
    assert "what was saved before is whole" in raised.value.hint
    assert [path.name for path in (saved / "checkpoints").iterdir()] == ["step-00000004"]
    train(recipe({"train.steps": 6}))
    assert read_course(saved)[4:] == read_course(whole.folder.path)


def test_run_stops_with_the_reason_and_resumes_when_the_disk_fills_up(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"checkpoint.every": 2}
    whole = train(recipe(changes, out="whole")).folder.path
    write = CheckpointStore.write

    def write_on_a_full_disk(store: CheckpointStore, state: Any, *rest: Any) -> Any:
        with _files_limited_to(100_000 if state["step"] == 6 else resource.RLIM_INFINITY):
            return write(store, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "write", write_on_a_full_disk)
        with pytest.raises(CheckpointError, match=r"cannot write .*step-00000006"):
            train(recipe(changes))
    assert read_course(train(recipe(changes)).folder.path) == read_course(whole)


def test_run_stops_with_the_reason_when_metrics_cannot_be_written(recipe: Recipe, saved: Path) -> None:
    size = (saved / "metrics.jsonl").stat().st_size
    with _files_limited_to(size + 100), pytest.raises(CheckpointError, match="cannot write metrics"):
        train(recipe({"train.steps": 6}))
    assert [row["step"] for row in read_course(saved)] == [1, 2, 3, 4]
