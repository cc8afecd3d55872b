"""The folder of a run: its files, and the lock that keeps two processes out of it."""

import fcntl
import os
import shutil
from pathlib import Path

from moesaic.errors import ConfigError


class RunFolder:
    """The files of a run, and the right to write them.

    The lock lives as long as the process that holds it, so a killed run never blocks the next one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.schedule = path / "schedule.json"
        self.metrics = path / "metrics.jsonl"
        self.saves = path / "saves.jsonl"
        self.report = path / "report.html"
        self.checkpoints = path / "checkpoints"
        self.tokenizer = path / "tokenizer"
        self.model = path / "model"
        self._lock_path = path / ".lock"
        self._lock: int | None = None
        self._is_new = False

    def acquire(self) -> None:
        """Create the folder where needed and lock it.

        Raises:
            ConfigError: another process has it, it holds something else than a run, or it cannot be made.
        """
        self._is_new = not self.path.exists()
        # A copy may lack the lock, which is a hidden file.
        is_run = self._lock_path.exists() or (self.config.exists() and self.checkpoints.is_dir())
        if self.path.exists() and not is_run and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                f"train.out '{self.path}' exists and is no run folder", "choose another folder, or empty it"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise ConfigError(
                f"run folder '{self.path}' is in use by another process",
                "wait for it to end, or choose another train.out",
            ) from None
        except OSError as failure:
            raise ConfigError(f"cannot make run folder '{self.path}': {failure}", "choose another train.out") from None

    def release(self) -> None:
        """Let the folder go; a new one in which no run has begun goes away."""
        if self._is_new and not self.config.exists():
            shutil.rmtree(self.tokenizer, ignore_errors=True)
            if list(self.path.iterdir()) == [self._lock_path]:
                self._lock_path.unlink()
                self.path.rmdir()
        self._close()

    def _close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
