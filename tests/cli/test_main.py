"""Exit codes, two-line errors, and the frozen list of commands and flags."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from moesaic.cli import main as command_line
from moesaic.cli.main import app
from moesaic.errors import CheckpointError
from tests.cli.command import Run, check_two_lines, run_apart

# What users and scripts rely on: a change here is a change of the interface.
COMMANDS = {
    "demo": {"--out", "--steps"},
    "train": {"recipe", "--set", "--resume", "--schedule"},
    "generate": {
        "model",
        "prompt",
        "--max-tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--min-p",
        "--stop",
        "--seed",
        "--ignore-eos",
        "--device",
        "--device-memory",
        "--chat",
        "--dtype",
        "--memory",
        "--json",
    },
    "plan": {
        "model",
        "--memory",
        "--prompt-tokens",
        "--dtype",
        "--memory-rate",
        "--disk-rate",
        "--arithmetic-rate",
        "--ranks",
        "--json",
    },
    "inspect": {"model", "--json"},
    "convert": {"source", "target", "--to", "--bits", "--core-bits", "--dtype"},
    "doctor": {"--json"},
    "bench checkpoint": {"--repeats", "--out", "--ranks", "--folder"},
    "bench comm": {"--ranks", "--repeats", "--out", "--case"},
    "bench scale": {"--ranks", "--steps", "--out", "--plot"},
    "bench train": {"--repeats", "--out", "--ranks", "--peers"},
    "bench ops": {"--repeats", "--out", "--case", "--peers"},
    "bench infer": {"--repeats", "--out", "--case", "--trace", "--steps", "--cache", "--peers"},
}


def _flags(command: Any) -> set[str]:
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return {name for name in names if not name.startswith("--no-")} - {"--help"}


def _commands(command: Any, prefix: str = "") -> dict[str, set[str]]:
    if not hasattr(command, "commands"):
        return {prefix.strip(): _flags(command)}
    found: dict[str, set[str]] = {}
    for name, inner in command.commands.items():
        found |= _commands(inner, f"{prefix} {name}")
    return found


def test_commands_and_flags_are_the_promised_ones_when_listed() -> None:
    root = typer.main.get_command(app)
    assert _commands(root) == COMMANDS
    assert _flags(root) == {"--debug"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_every_flag_and_exits_0_when_asked_for(command: str, cli: Run) -> None:
    answer = cli(*command.split(), "--help")
    assert (answer.code, answer.err) == (0, "")
    assert {flag for flag in COMMANDS[command] if flag.startswith("--")} <= set(re.findall(r"--[a-z-]+", answer.out))


def test_help_is_shown_when_nothing_is_asked_for(cli: Run) -> None:
    answer = cli()
    assert answer.code == 0
    assert answer == cli("--help")
    assert all(command.split()[0] in answer.out for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "named", "hint"),
    [
        (["trian", "x"], "trian", "see `moesaic --help`"),
        (["train", "x.toml", "--rseume", "never"], "--rseume", "see `moesaic train --help`"),
        (["train"], "recipe", "see `moesaic train --help`"),
        (["generate", "m", "p", "--max-tokens", "many"], "--max-tokens", "see `moesaic generate --help`"),
        (["convert", "a", "b", "--to", "gguf"], "--to", "see `moesaic convert --help`"),
        (["bench"], "command", "see `moesaic bench --help`"),
        (["bench", "train", "--repeats", "1"], "--repeats", "see `moesaic bench train --help`"),
        (["demo", "--steps", "0"], "--steps", "see `moesaic demo --help`"),
        (["plan", "m", "--prompt-tokens", "0"], "--prompt-tokens", "see `moesaic plan --help`"),
    ],
)
def test_command_line_is_refused_in_two_lines_when_it_is_misspelt(
    arguments: list[str], named: str, hint: str, cli: Run
) -> None:
    answer = cli(*arguments)
    check_two_lines(answer, named)
    assert answer.err.endswith(f" hint: {hint}\n")


def _raise(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(command_line, "app", fail)


def test_failure_of_ours_is_told_as_ours_and_exits_1_when_a_command_raises(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _raise(monkeypatch, ZeroDivisionError("division\nby zero"))
    answer = cli("inspect", "x")
    check_two_lines(answer, "internal error: ZeroDivisionError: division by zero", code=1)
    assert "run again with --debug" in answer.err


def test_error_has_a_hint_when_its_raiser_gave_none(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _raise(monkeypatch, CheckpointError("the text"))
    assert cli("inspect", "x").err == "error: the text\n hint: see `moesaic --help`\n"


def test_refusal_of_the_machine_is_no_fault_of_ours_when_a_file_cannot_be_used(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _raise(monkeypatch, PermissionError(13, "Permission denied", "/secret/file"))
    answer = cli("inspect", "x")
    check_two_lines(answer, "Permission denied: '/secret/file'")
    assert "check the file" in answer.err


def test_interrupted_command_exits_130_when_ctrl_c_is_pressed(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _raise(monkeypatch, KeyboardInterrupt())
    assert cli("inspect", "x").code == 130


@pytest.mark.parametrize("arguments", [["--debug", "inspect", "."], ["inspect", ".", "--debug"]])
def test_traceback_comes_before_the_two_lines_when_debug_is_given(arguments: list[str], cli: Run) -> None:
    answer = cli(*arguments)
    assert answer.code == 2
    assert answer.err.startswith("Traceback")
    assert answer.err.splitlines()[-2].startswith("error: ")
    assert answer.err.splitlines()[-1].startswith(" hint: ")


def test_module_runs_as_the_command_when_started_by_python() -> None:
    check_two_lines(run_apart("inspect", "/no/such/model"), "no model folder at '/no/such/model'")


def test_long_error_stays_on_one_line_when_printed(cli: Run) -> None:
    name = "/no/" + "long/" * 100
    check_two_lines(cli("inspect", name), name.rstrip("/"))


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError("Unable to allocate 9 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"),
    ],
)
def test_failed_allocation_is_no_fault_of_ours_when_memory_is_short(
    failure: BaseException, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _raise(monkeypatch, failure)
    check_two_lines(cli("inspect", "x"), f"out of memory: {failure}")


def test_text_is_printed_with_escapes_when_the_terminal_cannot_show_it(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moesaic", "generate", str(finished), "caf\u00e9", "--max-tokens", "1"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"caf\\xe9" in done.stdout
