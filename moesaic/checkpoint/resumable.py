"""A folder whose writing may be ended at any moment, and goes on where it was.

It is written beside its place, as '.converting-NAME/content', and gets its name when it is whole. What is done stands
in '.converting-NAME/progress.json', with the plan that it was done by: another plan starts anew.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moesaic.errors import CheckpointError
from moesaic.flush import flush, flush_tree, replace_text

_TEMPORARY = ".converting-"
_PROGRESS = "progress.json"


class Unfinished:
    """A folder that is being written.

    Attributes:
        folder: to write into.
        done: plain data about each part that is there, by its name.
    """

    def __init__(self, working: Path, plan: Mapping[str, Any]) -> None:
        self.folder = working / "content"
        self._progress = working / _PROGRESS
        self._plan = json.loads(json.dumps(plan))  # as it is read back
        self.done: dict[str, Any] = self._read()
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()

    def mark(self, part: str, result: Any) -> None:
        """Say that a part is there and flushed to the disk."""
        self.done[part] = result
        replace_text(self._progress, json.dumps({"plan": self._plan, "done": self.done}))

    def _read(self) -> dict[str, Any]:
        try:
            progress = json.loads(self._progress.read_text(encoding="utf-8"))
            return progress["done"] if progress["plan"] == self._plan and self.folder.is_dir() else {}
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return {}


@contextmanager
def resumable_folder(folder: Path, plan: Mapping[str, Any]) -> Iterator[Unfinished]:
    """Give a folder to fill, with what an earlier writer of the same plan left in it; at the end it becomes `folder`.

    Args:
        folder: must not exist.
        plan: plain data that decides every byte.

    Raises:
        CheckpointError: `folder` exists, somebody else is writing it, or writing failed; what is done stays.
    """
    folder = folder.absolute()
    if folder.exists():
        raise CheckpointError(f"'{folder}' exists already", "choose a new folder")
    working = folder.with_name(f"{_TEMPORARY}{folder.name}")
    try:
        working.mkdir(parents=True, exist_ok=True)
        with _alone(working):
            unfinished = Unfinished(working, plan)
            try:
                yield unfinished
                flush_tree(unfinished.folder)
                unfinished.folder.rename(folder)
                flush(folder.parent)
            finally:
                if folder.exists() or not unfinished.done:
                    shutil.rmtree(working, ignore_errors=True)
    except OSError as failure:
        raise CheckpointError(
            f"cannot write '{folder}': {failure}",
            "free some space or choose another folder; the same command goes on after what is done",
        ) from failure


@contextmanager
def _alone(working: Path) -> Iterator[None]:
    """Keep others out; however this process ends, its lock ends with it."""
    descriptor = os.open(working, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"another process is writing '{working}'", "wait for it, or end it") from None
        yield
    finally:
        os.close(descriptor)
