"""The lock of a run folder, and what may become one."""

import os
from pathlib import Path

import pytest

from moesaic.errors import ConfigError
from moesaic.train.run_folder import RunFolder


def test_folder_is_refused_when_another_holder_has_it(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.acquire()
    with pytest.raises(ConfigError, match="is in use by another process"):
        second.acquire()
    second.release()
    with pytest.raises(ConfigError, match="is in use by another process"):
        second.acquire()
    first.config.write_text("")
    first.release()
    second.acquire()
    second.release()


def test_refusal_holds_no_file_open_when_the_folder_is_in_use(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.acquire()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError):
        RunFolder(tmp_path / "run").acquire()
    assert len(os.listdir("/proc/self/fd")) == before
    first.release()


def test_folder_is_refused_when_it_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is no run folder"):
        RunFolder(tmp_path).acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_is_refused_when_its_name_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="exists and is no run folder"):
        RunFolder(tmp_path / "file").acquire()


def test_folder_is_refused_when_it_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make run folder"):
        RunFolder(tmp_path / "file" / "run").acquire()


def test_folder_is_taken_when_it_is_empty(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.acquire()
    folder.release()
    assert tmp_path.is_dir()


def test_new_folder_goes_away_when_nothing_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.acquire()
    folder.release()
    assert list(tmp_path.iterdir()) == []


def test_release_does_nothing_when_the_folder_was_never_acquired(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").release()
    assert list(tmp_path.iterdir()) == []


def test_run_folder_is_taken_when_a_copy_lost_its_lock(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(ConfigError, match="exists and is no run folder"):
        RunFolder(tmp_path).acquire()
    (tmp_path / "checkpoints").mkdir()
    folder = RunFolder(tmp_path)
    folder.acquire()
    folder.release()
