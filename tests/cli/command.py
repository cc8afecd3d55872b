"""Running the command line, in this process or in one of its own."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from moesaic.cli.main import main

PYTHON = (sys.executable, "-m", "moesaic")


@dataclass(frozen=True)
class Answer:
    """What a command left: its exit code and both streams."""

    code: int
    out: str
    err: str


Run = Callable[..., Answer]


def run_here(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Answer:
    """Run a command in this process."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["moesaic", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    streams = capsys.readouterr()
    return Answer(int(ended.value.code or 0), streams.out, streams.err)


def run_apart(*arguments: Any) -> Answer:
    """Run a command as a user does, in a process of its own."""
    done = subprocess.run([*PYTHON, *map(str, arguments)], capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, done.stderr)


def check_two_lines(answer: Answer, named: str, code: int = 2) -> None:
    """Check that a command failed as promised: two lines that name the matter, nothing on standard output."""
    assert answer.code == code, answer
    assert answer.out == ""
    error, hint = answer.err.splitlines()[-2:]
    assert error.startswith("error: "), answer.err
    assert named in error, error
    assert hint.startswith(" hint: "), answer.err
    assert len(hint) > len(" hint: "), answer.err
    assert "Traceback" not in answer.err
